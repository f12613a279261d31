import shutil
from collections.abc import Iterator

import pytest

from tests.report.browser import CHROMIUM, Page, chromium


@pytest.fixture(scope="session")
def browser() -> Iterator[Page]:
    """One headless browser for all tests of the page."""
    if CHROMIUM is None or shutil.which(CHROMIUM) is None:
        pytest.skip("found no chromium on PATH; install it (apt-get install chromium)")
    with chromium() as page:
        page.look(width=1200)
        yield page
