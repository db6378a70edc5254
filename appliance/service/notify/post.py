"""The post: runs that ended become messages in the outbox, messages are delivered, one by one.

    run ends -> (wake) -> `tell`: outbox, with the run marked -> `deliver`: channel by channel

Nothing here is on a run's path: it only sets an event. What is to be told is read from the catalog,
so a daemon that was killed between the end of a run and its message tells of it at its next start.
A delivery that fails is tried again, later and later, for about a day if that may help; then it is
given up, which the list of channels shows. A message may come twice when the daemon dies between
the server's answer and writing it down; none is lost.

Thread model: `work` belongs to one thread (the post's, or a test's); `wake`, `send` are for any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from appliance.base.errors import ApplianceError
from appliance.base.log import EventLog
from appliance.base.periodic_task import PeriodicTask
from appliance.base.secret import Secret
from appliance.catalog.catalog import Catalog
from appliance.catalog.channel import Channel, EmailChannel, Message, WebhookChannel
from appliance.catalog.notifications import ChannelState, Outgoing
from appliance.catalog.schedule import Schedule
from appliance.jobs.calendar import latest_due
from appliance.service.notify.compose import (
    digest_message,
    occasions,
    run_message,
    test_message,
)
from appliance.service.notify.email import send_email
from appliance.service.notify.errors import NotifyError
from appliance.service.notify.syslog import send_syslog
from appliance.service.notify.webhook import send_webhook

log = EventLog(__name__)

LOOK_EVERY_S = 30.0
_WAITS_MINUTES = (1, 2, 5, 15, 30, 60, 120, 240, 480, 480)  # a day, all together
_DIGEST_RUNS_MAX = 1000
_RECENT = timedelta(days=1, hours=2)  # a nightly job may begin a little later than yesterday
_GIVEN_UP = timedelta(days=30)
Unprotected = Callable[[], Sequence[str]]


class Post:
    """`unprotected`: VMs without a recent recovery point, for the digest; by default those whose
    newest is older than a day, and not so old that nobody expects one any more."""

    def __init__(self, catalog: Catalog, unprotected: Unprotected | None = None) -> None:
        self._catalog = catalog
        self._unprotected = unprotected or self._stale
        self._task = PeriodicTask("post", self._work_and_say_when, every_s=LOOK_EVERY_S)

    def start(self) -> None:
        self._task.start()

    def stop(self) -> None:
        """After the message that is being delivered; what waits is kept. Idempotent."""
        self._task.stop()

    def wake(self) -> None:
        """A run has ended, or somebody wants something delivered now."""
        self._task.wake()

    def _work_and_say_when(self) -> float | None:
        self.work()
        following = self._catalog.notifications.next_at()
        if following is None:
            return None
        wait_s = (following - self._catalog.clock.now()).total_seconds()
        return min(max(wait_s, 1.0), LOOK_EVERY_S)

    def work(self) -> None:
        """Do all that is to be done now."""
        channels = self._catalog.notifications.channels()
        while self._tell(channels):
            pass
        for state in channels:
            self._digest(state)
        for state in channels:
            self._deliver(state.channel)
        self._catalog.notifications.trim()

    def _stale(self) -> list[str]:
        now = self._catalog.clock.now()
        return [
            vm.vm for vm in self._catalog.points.vms() if _RECENT < now - vm.newest_at < _GIVEN_UP
        ]

    # Into the outbox

    def _tell(self, channels: Sequence[ChannelState]) -> int:
        untold = self._catalog.notifications.untold_runs()
        for run_id in untold:
            if not channels:
                self._catalog.notifications.tell(run_id, ())
                continue
            run = self._catalog.job_runs.get(run_id)
            before = self._catalog.job_runs.outcome_before(run)
            reached = occasions(run, before)
            message = run_message(run, before)
            names = [each.channel.name for each in channels if reached & {*each.channel.occasions}]
            self._catalog.notifications.tell(run_id, [(name, message) for name in names])
        return len(untold)

    def _digest(self, state: ChannelState) -> None:
        until = digest_due(state, self._catalog.clock.now())
        if until is None:
            return
        since, job_runs = state.digest_until, self._catalog.job_runs
        runs = job_runs.ended_between(since, until, limit=_DIGEST_RUNS_MAX)
        counts = job_runs.outcomes_between(since, until)
        message = digest_message(runs, counts, since, until, self._unprotected())
        self._catalog.notifications.tell_digest(state.channel.name, message, until)

    # Out of the outbox

    def _deliver(self, channel: Channel) -> None:
        for outgoing in self._catalog.notifications.due(channel.name):
            if self._task.stopping or not self._try(channel, outgoing):
                return  # its other messages would wait for the same timeout

    def _try(self, channel: Channel, outgoing: Outgoing) -> bool:
        try:
            self.send(channel, outgoing.message)
        except ApplianceError as error:
            following = self._try_again_at(outgoing, error)
            log.warning(
                "notification not delivered",
                channel=channel.name,
                attempt=outgoing.attempts + 1,
                code=error.code,
                error=error,
                given_up=following is None,
            )
            self._catalog.notifications.failed(outgoing, error.code, str(error), following)
            return False
        self._catalog.notifications.sent(outgoing)
        return True

    def _try_again_at(self, outgoing: Outgoing, error: ApplianceError) -> datetime | None:
        if not error.retryable or outgoing.attempts >= len(_WAITS_MINUTES):
            return None
        wait = timedelta(minutes=_WAITS_MINUTES[outgoing.attempts])
        return self._catalog.clock.now() + wait

    def send(self, channel: Channel, message: Message) -> None:
        """Deliver one message now. Raises NotifyError, and as `Notifications.secret`."""
        secret = self._catalog.notifications.secret(channel)
        send(channel, secret, message, self._catalog.clock.now())

    def test(self, name: str) -> None:
        """Deliver a test message to a channel now. Raises ChannelNotFoundError, as `send`."""
        channel = self._catalog.notifications.get(name)
        self.send(channel, test_message(channel, self._catalog.clock.now()))


def send(channel: Channel, secret: Secret | None, message: Message, now: datetime) -> None:
    """Raises NotifyError."""
    if isinstance(channel, EmailChannel):
        send_email(channel, secret, message)
    elif isinstance(channel, WebhookChannel):
        if secret is None:
            raise NotifyError(f"channel {channel.name!r} has no secret to sign with")
        send_webhook(channel, secret, message, now)
    else:
        send_syslog(channel, message)


def digest_due(state: ChannelState, now: datetime) -> datetime | None:
    """The moment that a digest now due reaches to; None: none is due."""
    if state.channel.digest_at is None:
        return None
    daily = Schedule(at=(state.channel.digest_at,))
    return latest_due(daily, ZoneInfo(state.channel.time_zone), state.digest_until, now)
