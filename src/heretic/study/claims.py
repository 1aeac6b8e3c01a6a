# SPDX-License-Identifier: Apache-2.0
"""Who measures which trial of a shared study: one row per index k, changed by compare-and-set alone.

Everything that must be decided between processes is decided by one statement of the storage's own engine: the
primary key gives an index once, a unique column gives a point once, and an UPDATE that names the owner it saw
hands a row on or accepts a result once. No lock is held over a pause, so a stopped worker blocks nobody, and
no wall clock is read: an owner shows that it lives by raising a counter (reliability A17, A18).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import sqlalchemy
import sqlalchemy.exc
from sqlalchemy import Column, Integer, LargeBinary, MetaData, Table, Text, UniqueConstraint

from heretic.study.storage import Location, patiently
from heretic.study.types import Value

T = TypeVar("T")

OPEN: Final = "open"
COMPLETE: Final = "complete"
FAILED: Final = "failed"
NOBODY: Final = ""
"""Owner of a row that was given back; anybody may take it at once."""

_METADATA = MetaData()
_CLAIMS = Table(
    "heretic_claims",
    _METADATA,
    Column("study", Text, primary_key=True),
    Column("k", Integer, primary_key=True, autoincrement=False),
    Column("point", Text),
    Column("parameters", Text, nullable=False),
    Column("trial_id", Integer),
    Column("owner", Text, nullable=False),
    Column("counter", Integer, nullable=False),
    Column("handed_on", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("result", Text),
    # NULL points (copies of a finished one) may repeat, in SQLite and in PostgreSQL.
    UniqueConstraint("study", "point"),
)
_FILES = Table(
    "heretic_files",
    _METADATA,
    Column("study", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Claim:
    """One index of a shared study. trial_id: its row in the storage, once made. pending: told, not yet stored there."""

    index: int
    point: str | None
    trial_id: int | None
    owner: str
    counter: int
    handed_on: int
    state: str
    pending: bool

    @property
    def unfinished(self) -> bool:
        """True while an owner still has something to do for it."""
        return self.state == OPEN or self.pending


@dataclass(frozen=True, slots=True)
class NewClaim:
    """An index to be claimed. point: key of its parameters, None where it repeats a known point."""

    index: int
    point: str | None
    parameters: Mapping[str, Value]
    trial_id: int | None = None
    state: str = OPEN
    handed_on: int = 0
    owner: str | None = None


class Claims:
    """The claims of one study, for one owner; every action is repeated while the storage is away."""

    def __init__(
        self, engine: sqlalchemy.Engine, location: Location, study_id: str, owner: str, *, patience_s: float
    ) -> None:
        self.owner = owner
        self._engine = engine
        self._location = location
        self._study_id = study_id
        self._patience_s = patience_s

    def impatient(self) -> Claims:
        """The same without repetition, for a thread and for an end that must not wait."""
        return Claims(self._engine, self._location, self._study_id, self.owner, patience_s=0.0)

    def prepare(self) -> None:
        """Makes the tables; the caller is alone or serialised, for databases race on this."""
        self._patiently(lambda: _METADATA.create_all(self._engine))

    def all(self) -> dict[int, Claim]:
        """Every claim by index, without parameters and results."""
        table = _CLAIMS.c
        statement = sqlalchemy.select(
            table.k,
            table.point,
            table.trial_id,
            table.owner,
            table.counter,
            table.handed_on,
            table.state,
            table.result.is_not(None).label("pending"),
        )
        rows = self._fetched(statement.where(self._of_study()).order_by(table.k))
        return {
            int(row.k): Claim(
                row.k,
                row.point,
                row.trial_id,
                row.owner,
                row.counter,
                row.handed_on,
                row.state,
                bool(row.pending),
            )
            for row in rows
        }

    def add(self, wanted: Sequence[NewClaim]) -> bool:
        """Claims all of these indexes and points, or none; False when one was taken meanwhile."""
        rows = [self._row(claim) for claim in wanted]

        def insert() -> bool:
            try:
                with self._engine.begin() as connection:
                    connection.execute(sqlalchemy.insert(_CLAIMS), rows)
            except sqlalchemy.exc.IntegrityError:
                # After a lost connection this may be the repetition of an insert that was committed.
                held = [self._owner_of(claim.index) for claim in wanted]
                return all(owner == self.owner for owner in held)
            return True

        return self._patiently(insert)

    def parameters(self, index: int) -> dict[str, Value]:
        """The parameters of a claim."""
        (row,) = self._fetched(self._select(index, _CLAIMS.c.parameters))
        return dict(json.loads(row[0]))

    def result(self, index: int) -> dict[str, Any] | None:
        """A result that was accepted and is not yet in the storage's own row."""
        (row,) = self._fetched(self._select(index, _CLAIMS.c.result))
        return None if row[0] is None else dict(json.loads(row[0]))

    def take(self, claim: Claim, *, count: bool) -> bool:
        """Takes a row over from the owner and counter that were seen; False when they have changed.

        count: the row was lost by its owner and not given back, which brings it nearer to failure.
        """
        seen = (_CLAIMS.c.owner == claim.owner, _CLAIMS.c.counter == claim.counter)
        handed_on = claim.handed_on + int(count)
        return self._changed(claim.index, seen, {"owner": self.owner, "counter": 0, "handed_on": handed_on})

    def attach(self, index: int, trial_id: int) -> bool:
        """Names the storage's row of a claim that has none; False when the claim was handed on."""
        free = (_CLAIMS.c.owner == self.owner, _CLAIMS.c.trial_id.is_(None))
        if self._changed(index, free, {"trial_id": trial_id}, repeated=False):
            return True
        (row,) = self._fetched(self._select(index, _CLAIMS.c.trial_id))
        return bool(row[0] == trial_id)

    def tell(self, index: int, state: str, result: Mapping[str, Any]) -> bool:
        """Accepts a result from the owner of an open row, durably; False when it was handed on (A18)."""
        owned = (_CLAIMS.c.owner == self.owner, _CLAIMS.c.state == OPEN)
        values = {"state": state, "result": json.dumps(result, allow_nan=False)}
        if self._changed(index, owned, values, repeated=False):
            return True
        (row,) = self._fetched(self._select(index, _CLAIMS.c.owner, _CLAIMS.c.state))
        return bool(row.owner == self.owner and row.state == state)

    def stored(self, index: int) -> None:
        """The result is in the storage's own row; the copy here goes."""
        self._execute(self._update(index).values(result=None))

    def renew(self) -> None:
        """Shows that this owner lives; one attempt, the next beat is another."""
        statement = (
            sqlalchemy.update(_CLAIMS)
            .where(self._of_study(), _CLAIMS.c.owner == self.owner, _unfinished())
            .values(counter=_CLAIMS.c.counter + 1)
        )
        with self._engine.begin() as connection:
            connection.execute(statement)

    def release(self, owner: str | None = None) -> int:
        """Gives unfinished rows of an owner (this one) back; anybody may take them at once. Returns how many."""
        statement = (
            sqlalchemy.update(_CLAIMS)
            .where(
                self._of_study(),
                _CLAIMS.c.owner == (self.owner if owner is None else owner),
                _unfinished(),
            )
            .values(owner=NOBODY, counter=0)
        )
        return self._execute(statement)

    def keep_file(self, name: str, data: bytes) -> None:
        """Stores a small file with the study; the first one stays."""

        def insert() -> None:
            row = {"study": self._study_id, "name": name, "data": data}
            try:
                with self._engine.begin() as connection:
                    connection.execute(sqlalchemy.insert(_FILES), row)
            except sqlalchemy.exc.IntegrityError:
                return

        self._patiently(insert)

    def file(self, name: str) -> bytes | None:
        """A file that was kept with the study."""
        table = _FILES.c
        statement = sqlalchemy.select(table.data).where(table.study == self._study_id, table.name == name)
        rows = self._fetched(statement)
        return bytes(rows[0][0]) if rows else None

    def _row(self, claim: NewClaim) -> dict[str, object]:
        return {
            "study": self._study_id,
            "k": claim.index,
            "point": claim.point,
            "parameters": json.dumps(dict(claim.parameters), allow_nan=False),
            "trial_id": claim.trial_id,
            "owner": self.owner if claim.owner is None else claim.owner,
            "counter": 0,
            "handed_on": claim.handed_on,
            "state": claim.state,
            "result": None,
        }

    def _owner_of(self, index: int) -> str | None:
        with self._engine.connect() as connection:
            row = connection.execute(self._select(index, _CLAIMS.c.owner)).first()
        return None if row is None else str(row[0])

    def _of_study(self) -> sqlalchemy.ColumnElement[bool]:
        return _CLAIMS.c.study == self._study_id

    def _select(self, index: int, *columns: Column[Any]) -> sqlalchemy.Select[Any]:
        return sqlalchemy.select(*columns).where(self._of_study(), _CLAIMS.c.k == index)

    def _update(self, index: int) -> sqlalchemy.Update:
        return sqlalchemy.update(_CLAIMS).where(self._of_study(), _CLAIMS.c.k == index)

    def _changed(
        self,
        index: int,
        expected: Sequence[sqlalchemy.ColumnElement[bool]],
        values: Mapping[str, object],
        *,
        repeated: bool = True,
    ) -> bool:
        """Compare and set. repeated: a repetition after a lost connection shows as a row that is ours already."""
        if self._execute(self._update(index).where(*expected).values(**values)) == 1:
            return True
        if not repeated:
            return False
        (row,) = self._fetched(self._select(index, _CLAIMS.c.owner))
        return bool(row[0] == self.owner)

    def _fetched(self, statement: sqlalchemy.Select[Any]) -> Sequence[sqlalchemy.Row[Any]]:
        def fetch() -> Sequence[sqlalchemy.Row[Any]]:
            with self._engine.connect() as connection:
                return connection.execute(statement).all()

        return self._patiently(fetch)

    def _execute(self, statement: sqlalchemy.Update) -> int:
        def execute() -> int:
            with self._engine.begin() as connection:
                return connection.execute(statement).rowcount

        return self._patiently(execute)

    def _patiently(self, action: Callable[[], T]) -> T:
        return patiently(action, self._location, patience_s=self._patience_s)


def forget_study(engine: sqlalchemy.Engine, study_id: str) -> None:
    """Removes the claims and files of a deleted study, where there are any."""
    present = set(sqlalchemy.inspect(engine).get_table_names())
    with engine.begin() as connection:
        for table in (_CLAIMS, _FILES):
            if table.name in present:
                connection.execute(sqlalchemy.delete(table).where(table.c.study == study_id))


def has_claims(engine: sqlalchemy.Engine) -> bool:
    """True when some study of the storage was shared."""
    return bool(sqlalchemy.inspect(engine).has_table(_CLAIMS.name))


def _unfinished() -> sqlalchemy.ColumnElement[bool]:
    return sqlalchemy.or_(_CLAIMS.c.state == OPEN, _CLAIMS.c.result.is_not(None))
