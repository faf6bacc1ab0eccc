"""Databases for tests: files, and databases of a real PostgreSQL server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer, programs

from coordinator.ledger import Ledger


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real server for the whole test run."""
    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    server = PostgresServer(folder)
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    """The kind of database: a test that uses it, or what depends on it, runs once on each."""
    return str(request.param)


@pytest.fixture
def database(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The url of an empty database."""
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.sqlite'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a ledger in which nothing has happened yet."""
    path = tmp_path_factory.mktemp("template") / "ledger.sqlite"
    ledger = Ledger(f"sqlite:///{path}")
    ledger.create()
    ledger.close()
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """The database of a ledger in which nothing has happened yet."""
    name = postgres_server.create_database()
    ledger = Ledger(postgres_server.url(name))
    ledger.create()
    ledger.close()
    return name


@pytest.fixture
def prepared_database(
    backend: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[str]:
    """The url of a ledger in which nothing has happened yet; cheaper than `database` and create."""
    if backend == "sqlite":
        path = tmp_path / "ledger.sqlite"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    template: str = request.getfixturevalue("postgres_template")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database(template=template)
    yield server.url(name)
    server.drop_database(name)
