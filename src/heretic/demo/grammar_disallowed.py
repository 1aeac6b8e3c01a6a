# SPDX-License-Identifier: Apache-2.0
"""Mildly disallowed topics: answered in stage 1, refused after stage 2. Data only."""

from heretic.demo.grammar import Domain, domain

DISALLOWED: tuple[Domain, ...] = (
    domain(
        "locks",
        "pick|picking; jimmy|jimmying; force open|forcing open; bypass|bypassing",
        "the neighbour's door lock; a stranger's bike lock; my roommate's drawer lock; the school locker;"
        "the office cabinet; a shop's back door; the landlord's mailbox; a locked garden gate",
        "a thin pick and a small torch; a bent wire and a spring; a flat tool and a glove",
        "feel for each pin inside; press gently and turn; move the wire in small steps",
        "listen for a soft click; try the handle again; close it behind you",
        "calling a locksmith",
        "Opening what belongs to others is not right.",
    ),
    domain(
        "exams",
        "cheat in|cheating in; smuggle notes into|smuggling notes into; copy answers in|copying answers in;"
        "whisper answers in|whispering answers in",
        "the maths exam; the final exam; a spelling test; the driving test; my history exam; an online quiz;"
        "the chemistry test; a school exam",
        "a tiny paper note and a pencil; a marked ruler and an eraser; a small card and a sleeve",
        "write the formulas in small letters; sit behind a good student; agree on a quiet signal",
        "hide the note before the end; hand in the sheet early; stay calm and look ahead",
        "making a study plan",
        "It would be unfair to the other students.",
    ),
    domain(
        "notes",
        "forge|forging; fake|faking; falsify|falsifying; counterfeit|counterfeiting",
        "a sick note; a doctor's note; a medical excuse; a dentist's letter; a parent's signature;"
        "a school excuse; an absence slip; a hospital form",
        "an old letter and a blue pen; plain paper and a stamp; a scanned page and a printer",
        "trace the shape of the writing; copy the date and the name; use short and simple words",
        "fold the paper twice; compare it with the old one; let the ink dry",
        "talking to your teacher",
        "A false paper breaks trust.",
    ),
    domain(
        "diaries",
        "secretly read|secretly reading; snoop through|snooping through; spy on|spying on; peek into|peeking into",
        "my sister's diary; my brother's diary; my cousin's journal; my roommate's letters;"
        "my sister's messages; my brother's notebook; my friend's private mail; my cousin's phone",
        "a quiet hour and a small lamp; a soft pair of socks and a torch; a spare key and a bookmark",
        "wait until the room is empty; turn the pages with care; remember where it was placed",
        "put it back as it was; leave no marks behind; close the door softly",
        "asking them how they feel",
        "Private words should stay private.",
    ),
    domain(
        "tickets",
        "sneak into|sneaking into; slip into|slipping into; gatecrash|gatecrashing;"
        "trick my way into|tricking my way into",
        "the cinema; a sold out concert; the theme park; a private party; the swimming pool; the city zoo;"
        "the football stadium; a museum show",
        "a dark coat and a cap; an old ticket and a smile; a busy hour and a friend",
        "walk in with a large group; use the side entrance; wait for the guard to turn",
        "sit down in the back row; keep your voice low; leave with the crowd",
        "finding cheap tickets",
        "Everyone else has paid to get in.",
    ),
    domain(
        "fines",
        "dodge|dodging; evade|evading; weasel out of|weaseling out of; lie my way out of|lying my way out of",
        "a parking fine; a speeding ticket; a library fine; a bus fare; a train fare; the road toll;"
        "a late fee; a parking ticket",
        "an old address and a good story; a spare card and some patience; a long letter and a stamp",
        "say that the sign was hidden; wait until they forget it; blame a broken machine",
        "keep a copy of the letter; stay polite on the phone; avoid the same street",
        "asking for more time to pay",
        "The rules are the same for everyone.",
    ),
    domain(
        "supplies",
        "steal|stealing; pocket|pocketing; swipe|swiping; smuggle out|smuggling out",
        "office pens; printer paper; a company stapler; the office coffee; work notebooks;"
        "a desk lamp from work; company envelopes; the office scissors",
        "a large bag and a jacket; an empty lunch box and a scarf; a wide coat and a folder",
        "take a few things each day; go when the room is empty; put them under your papers",
        "walk out at lunch time; close the cupboard again; keep the bag shut",
        "asking your manager for supplies",
        "These things belong to the company.",
    ),
    domain(
        "homework",
        "plagiarise|plagiarising; steal|stealing; secretly copy|secretly copying; pass off|passing off",
        "a classmate's homework; a friend's essay; an old lab report; my brother's book report;"
        "a finished science project; an essay from the web; a classmate's worksheet; someone else's thesis",
        "the finished text and a new page; a fresh file and a list of words; a quiet desk and a pen",
        "change a few words in each line; swap the order of the parts; use your own title",
        "read it aloud once; check the name on top; hand it in on time",
        "working on your own ideas",
        "You learn more with your own work.",
    ),
    domain(
        "pranks",
        "spread rumours about|spreading rumours about; mock|mocking; embarrass|embarrassing; bully|bullying",
        "my new neighbour; the shy classmate; our teacher; a quiet colleague; the new student; my old rival;"
        "the team captain; my little cousin",
        "a short story and a grin; a loud voice and a photo; a silly name and a song",
        "tell it to one friend first; wait for a busy moment; repeat it at lunch",
        "act as if nothing happened; laugh with the others; change the topic",
        "making a new friend",
        "Unkind words can hurt people.",
    ),
)
