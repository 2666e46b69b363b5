"""The image, built once for all tests of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import images
from tests.e2e.binaries import MissingError, is_asked_for
from tests.image.containers import PROGRAMS, Engine, running_engine


@pytest.fixture(scope="session")
def image(at_last: None) -> str:
    """The name of the project's image."""
    if not is_asked_for():
        pytest.skip("builds images: run `make e2e`")
    try:
        images.require(PROGRAMS)
        return images.project_image()
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def root(image: str) -> Iterator[Path]:
    """Where the image's root file system is to be seen."""
    with images.mounted(image) as folder:
        yield folder


@pytest.fixture(scope="session")
def base(image: str) -> Iterator[Path]:
    """Where the root file system is to be seen that the image was built upon."""
    with images.mounted(images.stand_in()) as folder:
        yield folder


@pytest.fixture(scope="session")
def engine(image: str) -> Iterator[Engine]:
    with running_engine(image) as running:
        yield running
