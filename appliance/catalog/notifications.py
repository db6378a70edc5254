"""Channels of notifications, and the outbox: what is to be sent, and what became of it.

A message is in the outbox before anybody tries to send it, so a restart loses none; the runs that
are to be told of are taken from the runs themselves (`job_runs.told`), in the same transaction.
A message waits, is sent, or is given up; the last two are kept for looking back.

Thread model: as `db.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from appliance.base.clock import Clock
from appliance.base.errors import UsageError
from appliance.base.ids import RunId
from appliance.base.secret import Secret
from appliance.catalog.channel import CHANNEL, Channel, Message
from appliance.catalog.db import Database
from appliance.catalog.errors import ChannelExistsError, ChannelNotFoundError
from appliance.catalog.sealing import SecretSealer

KEPT = timedelta(days=30)
WAITING_MAX = 10_000  # of one channel; beyond it the oldest is given up
_COLUMNS = "id, channel, message, queued_at, attempts, next_at, ended_at, state, error_code, error"


class Delivery(StrEnum):
    WAITING = "waiting"
    SENT = "sent"
    GIVEN_UP = "given-up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    id: int
    channel: str
    message: Message
    queued_at: datetime
    attempts: int
    next_at: datetime | None  # None: no longer
    ended_at: datetime | None
    state: Delivery
    error_code: str | None  # of the last attempt
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelState:
    channel: Channel
    has_secret: bool
    digest_until: datetime  # what happened before is in a digest, or before the channel's time


class Notifications:
    def __init__(self, database: Database, sealer: SecretSealer, clock: Clock) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock

    # Channels

    def add(self, channel: Channel, secret: Secret | None) -> None:
        """Raises: UsageError: a secret is missing or too much; ChannelExistsError."""
        _check_secret(channel, secret)
        sealed = self._sealer.seal(secret, _sealed_with(channel)) if secret else None
        with self._database.writing() as connection:
            if connection.execute(
                "SELECT 1 FROM channels WHERE name = ?", (channel.name,)
            ).fetchone():
                raise ChannelExistsError(f"there is a notification channel {channel.name!r}")
            connection.execute(
                "INSERT INTO channels (name, document, sealed_secret, digest_until)"
                " VALUES (?, ?, ?, ?)",
                (channel.name, channel.model_dump_json(), sealed, self._clock.now().isoformat()),
            )

    def channels(self) -> list[ChannelState]:
        """By name."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT document, sealed_secret IS NOT NULL, digest_until FROM channels"
                " ORDER BY name"
            ).fetchall()
        return [
            ChannelState(
                channel=CHANNEL.validate_json(document),
                has_secret=bool(has_secret),
                digest_until=datetime.fromisoformat(until),
            )
            for document, has_secret, until in rows
        ]

    def get(self, name: str) -> Channel:
        """Raises ChannelNotFoundError."""
        for state in self.channels():
            if state.channel.name == name:
                return state.channel
        raise ChannelNotFoundError(f"there is no notification channel {name!r}")

    def secret(self, channel: Channel) -> Secret | None:
        """Open what was sealed for exactly this place.

        Raises: ChannelNotFoundError, SecretsKeyLostError, SecretDamagedError.
        """
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT sealed_secret FROM channels WHERE name = ?", (channel.name,)
            ).fetchone()
        if row is None:
            raise ChannelNotFoundError(f"there is no notification channel {channel.name!r}")
        return None if row[0] is None else self._sealer.unseal(row[0], _sealed_with(channel))

    def remove(self, name: str) -> None:
        """With what waits for it. Raises ChannelNotFoundError."""
        with self._database.writing() as connection:
            if not connection.execute("DELETE FROM channels WHERE name = ?", (name,)).rowcount:
                raise ChannelNotFoundError(f"there is no notification channel {name!r}")

    # The outbox

    def untold_runs(self, limit: int = 1000) -> list[RunId]:
        """Runs that have ended since channels were last told, in the order of their beginning."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT run_id FROM job_runs WHERE told = 0 AND ended_at IS NOT NULL"
                " ORDER BY seq LIMIT ?",
                (limit,),
            ).fetchall()
        return [RunId(row[0]) for row in rows]

    def tell(self, run_id: RunId, messages: Iterable[tuple[str, Message]]) -> None:
        """Put a run's messages into the outbox; the run is told of. Both or neither."""
        with self._database.writing() as connection:
            done = connection.execute(
                "UPDATE job_runs SET told = 1 WHERE run_id = ? AND told = 0", (run_id,)
            )
            if done.rowcount:
                for channel, message in messages:
                    self._queue(connection, channel, message)

    def tell_digest(self, channel: str, message: Message, until: datetime) -> None:
        """Put a digest into the outbox; the next one begins at `until`. Both or neither."""
        with self._database.writing() as connection:
            done = connection.execute(
                "UPDATE channels SET digest_until = ? WHERE name = ? AND digest_until < ?",
                (until.isoformat(), channel, until.isoformat()),
            )
            if done.rowcount:
                self._queue(connection, channel, message)

    def announce(self, message: Message) -> None:
        """To all channels, at once."""
        with self._database.writing() as connection:
            names = connection.execute("SELECT name FROM channels").fetchall()
            for (name,) in names:
                self._queue(connection, name, message)

    def due(self, channel: str, limit: int = 200) -> list[Outgoing]:
        """What is to be tried now on a channel, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM outbox WHERE channel = ? AND state = 'waiting'"
                " AND next_at <= ? ORDER BY id LIMIT ?",
                (channel, self._clock.now().isoformat(), limit),
            ).fetchall()
        return [_outgoing(row) for row in rows]

    def next_at(self) -> datetime | None:
        """When something is to be tried next; None: nothing waits."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT min(next_at) FROM outbox WHERE state = 'waiting'"
            ).fetchone()
        return datetime.fromisoformat(row[0]) if row[0] else None

    def sent(self, outgoing: Outgoing) -> None:
        self._end(outgoing, Delivery.SENT, None, None, None)

    def failed(self, outgoing: Outgoing, code: str, text: str, next_at: datetime | None) -> None:
        """Try again at `next_at`; None: it is given up."""
        state = Delivery.WAITING if next_at else Delivery.GIVEN_UP
        self._end(outgoing, state, code, text, next_at)

    def recent(self, *, channel: str | None = None, limit: int = 100) -> list[Outgoing]:
        """The newest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM outbox WHERE (?1 IS NULL OR channel = ?1)"
                " ORDER BY id DESC LIMIT ?2",
                (channel, limit),
            ).fetchall()
        return [_outgoing(row) for row in rows]

    def counts(self) -> dict[Delivery, int]:
        with self._database.reading() as connection:
            rows = connection.execute("SELECT state, count(*) FROM outbox GROUP BY state")
            return {Delivery(state): count for state, count in rows.fetchall()}

    def trim(self) -> int:
        """Forget what ended long ago; return how many."""
        oldest = (self._clock.now() - KEPT).isoformat()
        with self._database.writing() as connection:
            return connection.execute("DELETE FROM outbox WHERE ended_at < ?", (oldest,)).rowcount

    def _queue(self, connection: sqlite3.Connection, channel: str, message: Message) -> None:
        now = self._clock.now().isoformat()
        connection.execute(
            "INSERT INTO outbox (channel, message, queued_at, attempts, next_at, state)"
            " SELECT name, ?, ?, 0, ?, 'waiting' FROM channels WHERE name = ?",
            (message.model_dump_json(), now, now, channel),
        )
        connection.execute(
            "UPDATE outbox SET state = 'given-up', next_at = NULL, ended_at = ?,"
            " error_code = 'notify.too-many', error = 'too many wait' WHERE id = ("
            " SELECT id FROM outbox WHERE channel = ? AND state = 'waiting'"
            " ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (now, channel, WAITING_MAX),
        )

    def _end(
        self,
        outgoing: Outgoing,
        state: Delivery,
        code: str | None,
        text: str | None,
        next_at: datetime | None,
    ) -> None:
        ended = None if state is Delivery.WAITING else self._clock.now().isoformat()
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE outbox SET attempts = attempts + 1, state = ?, error_code = ?, error = ?,"
                " next_at = ?, ended_at = ? WHERE id = ? AND state = 'waiting'",
                (state, code, text, next_at and next_at.isoformat(), ended, outgoing.id),
            )


def _sealed_with(channel: Channel) -> tuple[str, ...]:
    return (f"notification channel {channel.name}", "secret", channel.place)


def _check_secret(channel: Channel, secret: Secret | None) -> None:
    if channel.kind == "webhook" and secret is None:
        raise UsageError("a webhook needs a secret, which its requests are signed with")
    if channel.kind == "email" and (channel.user is None) != (secret is None):
        raise UsageError("user and password go together; leave both out for a server without login")
    if channel.kind == "syslog" and secret is not None:
        raise UsageError("syslog has no secret")


def _outgoing(row: tuple[Any, ...]) -> Outgoing:
    id_, channel, message, queued_at, attempts, next_at, ended_at, state, code, error = row
    return Outgoing(
        id=id_,
        channel=channel,
        message=Message.model_validate_json(message),
        queued_at=datetime.fromisoformat(queued_at),
        attempts=attempts,
        next_at=datetime.fromisoformat(next_at) if next_at else None,
        ended_at=datetime.fromisoformat(ended_at) if ended_at else None,
        state=Delivery(state),
        error_code=code,
        error=error,
    )
