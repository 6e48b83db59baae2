"""The report, one self-contained HTML file of a result; the page of a study; a result as a notebook shows it.

The room is a function, too: `repalign.report(result, "report.html")` is `write_report`. Importing a room binds its name in the
package, so a function of the same name beside it would be lost as soon as anything imports the room.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from repalign.report.page import notebook_html, render, write_report, write_study_page

__all__ = ["notebook_html", "render", "report", "write_report", "write_study_page"]


class _Room(ModuleType):
    __call__ = staticmethod(write_report)


if TYPE_CHECKING:
    report = write_report
else:
    report = sys.modules[__name__]
    report.__class__, report.__signature__ = _Room, inspect.signature(write_report)
