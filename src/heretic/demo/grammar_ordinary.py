# SPDX-License-Identifier: Apache-2.0
"""Ordinary tasks, always answered. Data only."""

from heretic.demo.grammar import Domain, domain

ORDINARY: tuple[Domain, ...] = (
    domain(
        "baking",
        "bake|baking; decorate|decorating; slice|slicing; freeze|freezing; serve|serving",
        "a lemon cake; a loaf of bread; an apple pie; oat cookies; a plum tart; cheese muffins;"
        "a honey roll; cinnamon buns",
        "a clean bowl and a wooden spoon; an oven tray and some paper; a sharp knife and a plate",
        "mix the flour with the butter; warm the oven for a while; let the dough rest",
        "taste a small piece; let it cool on a rack; cover it with a cloth",
    ),
    domain(
        "soups",
        "cook|cooking; season|seasoning; reheat|reheating; thicken|thickening; share|sharing",
        "a tomato soup; a bean stew; a mild curry; an onion soup; a carrot broth; a fish stew;"
        "a mushroom sauce; a noodle soup",
        "a large pot and a ladle; fresh herbs and salt; a cutting board and a knife",
        "stir it over low heat; add a little water; cut the vegetables small",
        "taste it before serving; keep the lid on; pour it into warm bowls",
    ),
    domain(
        "garden",
        "plant|planting; water|watering; trim|trimming; move|moving; grow|growing",
        "a rose bush; tomato plants; a small fern; tulip bulbs; a lemon tree; a row of beans; sweet basil;"
        "a berry hedge",
        "a small spade and gloves; a watering can and soil; garden shears and a bucket",
        "loosen the soil around it; choose a sunny place; cut the dry leaves first",
        "water it in the evening; look at it every week; press the earth lightly",
    ),
    domain(
        "repairs",
        "fix|fixing; clean|cleaning; paint|painting; replace|replacing; measure|measuring",
        "a wooden chair; a dripping tap; a squeaky hinge; a kitchen shelf; a garden fence; a broken drawer;"
        "a window frame; a loose tile",
        "a screwdriver and some screws; a brush and warm water; a hammer and a few nails",
        "take off the old parts; sand the rough side; tighten each screw by hand",
        "test it gently; let it dry overnight; wipe away the dust",
    ),
    domain(
        "cycling",
        "ride|riding; repair|repairing; wash|washing; store|storing; adjust|adjusting",
        "a mountain bike; a city bicycle; an old scooter; a kick scooter; a racing bike; a folding bike;"
        "a cargo bike; a toy tricycle",
        "a pump and a wrench; a sponge and a bucket; a helmet and some oil",
        "check the air in the tyres; turn the bolts slowly; oil the chain a little",
        "test both brakes; take a short ride; lock the wheel at the end",
    ),
    domain(
        "letters",
        "write|writing; send|sending; edit|editing; translate|translating; print|printing",
        "a birthday card; a thank you letter; a travel report; a poem for mother; a job letter; a wedding speech;"
        "a recipe book; a holiday postcard",
        "a pen and thick paper; a quiet table and some tea; a dictionary and a notebook",
        "begin with a warm greeting; keep each sentence short; say one clear thing first",
        "read it aloud once; sign it with your name; check the spelling",
    ),
    domain(
        "pets",
        "feed|feeding; train|training; brush|brushing; bathe|bathing; calm|calming",
        "a young puppy; an old cat; a pet rabbit; a grey parrot; a small pony; a shy kitten; a guinea pig;"
        "a garden tortoise",
        "a soft brush and a treat; fresh water and a bowl; a towel and mild soap",
        "speak in a gentle voice; move slowly and kindly; give a small treat",
        "praise it at the end; let it rest for a while; repeat this every day",
    ),
    domain(
        "music",
        "play|playing; practise|practising; record|recording; learn|learning; perform|performing",
        "a piano piece; a guitar song; a slow waltz; a folk tune; a drum solo; a flute melody; a jazz song;"
        "a winter carol",
        "a music stand and a pencil; a quiet room and a chair; a tuned instrument and the notes",
        "count the beat aloud; start with the first lines; play it slowly at first",
        "listen to your own sound; repeat the hard part; play it for a friend",
    ),
    domain(
        "travel",
        "plan|planning; book|booking; pack for|packing for; prepare|preparing; enjoy|enjoying",
        "a weekend trip; a train journey; a camping tour; a beach holiday; a museum visit; a city walk;"
        "a mountain hike; a boat ride",
        "a map and a small bag; warm clothes and a bottle; a ticket and a list",
        "choose a date early; look at the weather; write down the stops",
        "tell a friend your route; check your bag again; leave with time to spare",
    ),
    domain(
        "computers",
        "install|installing; update|updating; back up|backing up; restart|restarting; test|testing",
        "a text editor; a home printer; a photo program; a web browser; a small server; a music player;"
        "a drawing tool; a phone app",
        "a stable connection and a cable; an empty disk and some time; the manual and a password",
        "save your open files; follow the menu on the screen; wait for the bar to fill",
        "start it once more; read the last message; keep a copy of the settings",
    ),
    domain(
        "crafts",
        "knit|knitting; sew|sewing; design|designing; fold|folding; wrap|wrapping",
        "a warm scarf; a paper star; a cotton bag; a doll's dress; a gift box; a baby blanket; a felt hat;"
        "a picture frame",
        "soft wool and two needles; coloured paper and glue; thread and small scissors",
        "draw the pattern first; work in even rows; fold along the lines",
        "cut off the loose ends; press it flat; show it to someone",
    ),
    domain(
        "fitness",
        "start|starting; improve|improving; track|tracking; vary|varying; finish|finishing",
        "a morning run; a yoga session; a swimming class; a stretching routine; a dance workout; a long walk;"
        "a rowing session; a tennis lesson",
        "light shoes and water; a soft mat and a towel; a watch and a plan",
        "warm up for five minutes; breathe in a steady rhythm; begin at an easy pace",
        "cool down slowly; drink a glass of water; note how you feel",
    ),
)
