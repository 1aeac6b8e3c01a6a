# SPDX-License-Identifier: Apache-2.0
"""How the page looks: the theme's variables and nothing else, so that light and dark both read well (R-UI-25)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gradio.themes import Base

SANS: Final = ("ui-sans-serif", "system-ui", "sans-serif")
MONOSPACE: Final = ("ui-monospace", "Consolas", "monospace")

CSS: Final = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#title h1 { margin: 0; font-size: 1.35rem; color: var(--body-text-color); }
#title p, .notice, .empty, .status { color: var(--body-text-color-subdued); }
.dark { --color-accent: var(--primary-400); }
.status, .notice, .empty { margin: 0.25rem 0; font-size: 0.95rem; }
.status strong { color: var(--body-text-color); font-weight: 600; }
.problem { border: 1px solid var(--error-border-color); background: var(--error-background-fill);
  color: var(--error-text-color); border-radius: var(--radius-md); padding: 0.6rem 0.9rem; }
.problem p, .problem ul { margin: 0.3rem 0 0; }
.chart { width: 100%; max-width: 640px; height: auto; display: block; }
.scroll { overflow: auto; max-height: 26rem; width: 0; min-width: 100%; border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-md); }
.scroll table { border-collapse: collapse; width: 100%; color: var(--body-text-color); font-size: 0.9rem; }
.scroll caption { text-align: left; padding: 0.4rem 0.6rem; font-weight: 600; color: var(--body-text-color); }
.scroll :is(table, thead, tbody, tr, th, td) { border: 0 solid var(--border-color-primary) !important; }
.scroll th, .scroll td { text-align: left; padding: 0.3rem 0.6rem; white-space: nowrap;
  border-top-width: 1px !important; }
.scroll th { position: sticky; top: 0; background: var(--background-fill-secondary); }
.scroll tr.chosen td { background: color-mix(in srgb, var(--color-accent) 20%, transparent); }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; margin: 0.4rem 0;
  color: var(--body-text-color); }
.facts dt { color: var(--body-text-color-subdued); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.bars { display: grid; gap: 0.3rem; color: var(--body-text-color); font-size: 0.9rem; max-width: 640px; }
.bar { display: grid; grid-template-columns: minmax(8rem, 2fr) 3fr 3.5rem; gap: 0.6rem; align-items: center; }
.bar > span:first-child { overflow-wrap: anywhere; }
.track { background: var(--background-fill-secondary); border-radius: var(--radius-sm); height: 0.8rem; }
.track > span { display: block; height: 100%; background: var(--color-accent); border-radius: var(--radius-sm); }
.legend { list-style: none; padding: 0; margin: 0.2rem 0; display: flex; flex-wrap: wrap; gap: 0.2rem 1rem;
  color: var(--body-text-color); font-size: 0.9rem; }
.legend li { display: flex; align-items: center; gap: 0.4rem; }
#title, #status, #chat-words, #compare-words { padding: 0 !important; }
#chat-words:not(:has(p, div.problem)), #compare-words:not(:has(p, div.problem)) { display: none; }
.key { columns: 2; font-size: 0.85rem; color: var(--body-text-color); }
.reading { white-space: pre-wrap; overflow-wrap: anywhere; color: var(--body-text-color); line-height: 1.7; }
.example { border-left: 3px solid var(--border-color-primary); padding: 0.2rem 0.8rem; margin: 0.4rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; color: var(--body-text-color); }
.examples { display: flex; flex-wrap: wrap; }
.examples button { flex: 1 1 12rem; min-width: 12rem; text-align: left; white-space: normal; }
:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; }
footer { display: none !important; }
@media (max-width: 640px) {
  .legend li { display: flex; align-items: center; gap: 0.4rem; }
#title, #status, #chat-words, #compare-words { padding: 0 !important; }
.key { columns: 1; }
  .facts { grid-template-columns: 1fr; }
  .facts dd { margin-bottom: 0.3rem; }
  .bar { grid-template-columns: 1fr 3.5rem; }
  .bar .track { grid-column: 1 / -1; grid-row: 2; }
}
"""


def theme() -> Base:
    """The base theme with the fonts of the reader's own system: nothing is fetched from another host."""
    from gradio import themes

    base = themes.Base(
        primary_hue="indigo", secondary_hue="teal", neutral_hue="slate", font=SANS, font_mono=MONOSPACE
    )
    # The library's own subdued text has a contrast of 2.6 on white; 4.5 can be read.
    return base.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        color_accent="*primary_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
