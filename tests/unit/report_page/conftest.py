# SPDX-License-Identifier: Apache-2.0
"""One finished report that the tests share and leave as it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from heretic.apps.report_page import importance
from heretic.apps.report_page.make import make_report
from heretic.apps.report_page.record import gather

from .support import Whole, add_report, report, searched, site


@pytest.fixture(scope="session", autouse=True)
def few_resamples() -> Iterator[None]:
    """The spread of importances is tested elsewhere; here it only takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importance, "RESAMPLES", 3)
        yield


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The report."""
    folder = tmp_path_factory.mktemp("whole")
    storage = searched(folder)
    add_report(storage, report().to_document(), [site()])
    made = make_report(storage, "one", folder / "report")
    return Whole(storage, gather(storage, "one"), made, made.page.read_text(encoding="utf-8"))
