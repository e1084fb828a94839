"""Reports as pure functions of what runs have left: tables, verdicts on published figures, and one page of both.

* `measured`: reads records, metrics and points of attacks from a folder.
* `tables`, `attacks`, `volatility`: runs that differ in the seed only, as Markdown or for a terminal.
* `findings`: published figures and claims beside what was measured, with verdicts.
* `charts`, `page`: the pictures, and the self-contained HTML page.
"""
