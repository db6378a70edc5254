"""The tables of the catalog and how older ones become newer ones.

`PRAGMA user_version` is the number of migrations that were applied. A migration that was released
is never changed; a new one is added at the end. Times are ISO 8601 with zone, UTC.
"""

from __future__ import annotations

from appliance.catalog.point_tables import POINT_TABLES

APPLICATION_ID = 0x484F4C44  # "HOLD", `PRAGMA application_id`: this file is ours

_HOSTS = """
CREATE TABLE hosts (
  name            TEXT PRIMARY KEY,
  kind            TEXT NOT NULL CHECK (kind IN ('vsphere', 'hyperv')),
  address         TEXT NOT NULL,
  port            INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
  user            TEXT NOT NULL,
  fingerprint     TEXT NOT NULL,
  server_id       TEXT NOT NULL UNIQUE,
  settings        TEXT NOT NULL,
  sealed_password BLOB NOT NULL,
  added_at        TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""

_INTENTS = """
CREATE TABLE intents (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  kind         TEXT NOT NULL,
  host         TEXT NOT NULL REFERENCES hosts (name) ON DELETE RESTRICT,
  run_id       TEXT NOT NULL,
  target_moref TEXT NOT NULL,
  name         TEXT NOT NULL,
  detail       TEXT NOT NULL,
  recorded_at  TEXT NOT NULL,
  made_moref   TEXT
) STRICT
"""

_RUNS = """
CREATE TABLE runs (
  run_id     TEXT PRIMARY KEY,
  kind       TEXT NOT NULL,
  vm         TEXT NOT NULL,
  host       TEXT,
  started_at TEXT NOT NULL,
  ended_at   TEXT,
  outcome    TEXT CHECK (outcome IN ('success', 'warning', 'failed', 'cancelled')),
  error_code TEXT,
  result     TEXT NOT NULL,
  CHECK ((ended_at IS NULL) = (outcome IS NULL))
) STRICT, WITHOUT ROWID
"""

_ACCOUNTS = """
CREATE TABLE accounts (
  name          TEXT PRIMARY KEY,
  role          TEXT NOT NULL
                CHECK (role IN ('administrator', 'operator', 'restore-only', 'read-only')),
  password_hash TEXT NOT NULL,
  sealed_totp   BLOB,
  totp_last     INTEGER NOT NULL DEFAULT 0,
  created_at    TEXT NOT NULL,
  disabled      INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
  failures      INTEGER NOT NULL DEFAULT 0,
  locked_until  TEXT
) STRICT, WITHOUT ROWID
"""

_WEB_SESSIONS = """
CREATE TABLE web_sessions (
  secret_hash BLOB PRIMARY KEY,
  account     TEXT NOT NULL REFERENCES accounts (name) ON DELETE CASCADE,
  csrf        TEXT NOT NULL,
  created_at  TEXT NOT NULL,
  used_at     TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""

_API_TOKENS = """
CREATE TABLE api_tokens (
  name        TEXT PRIMARY KEY,
  secret_hash BLOB NOT NULL UNIQUE,
  role        TEXT NOT NULL
              CHECK (role IN ('administrator', 'operator', 'restore-only', 'read-only')),
  created_by  TEXT NOT NULL,
  created_at  TEXT NOT NULL,
  expires_at  TEXT,
  used_at     TEXT
) STRICT, WITHOUT ROWID
"""

_AUDIT = """
CREATE TABLE audit (
  id      INTEGER PRIMARY KEY AUTOINCREMENT,
  at      TEXT NOT NULL,
  actor   TEXT NOT NULL,
  address TEXT NOT NULL,
  action  TEXT NOT NULL,
  object  TEXT NOT NULL,
  outcome TEXT NOT NULL,
  hash    BLOB NOT NULL
) STRICT
"""

_AUDIT_KEPT = tuple(
    f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit"
    " BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END"
    for verb in ("UPDATE", "DELETE")
)

_VERIFICATIONS = """
CREATE TABLE verifications (
  run_id          TEXT NOT NULL,
  vm              TEXT NOT NULL,
  point_id        TEXT NOT NULL,
  started_at      TEXT NOT NULL,
  verdict         TEXT NOT NULL CHECK (verdict IN ('passed', 'failed', 'skipped')),
  recovery_s      REAL CHECK (recovery_s >= 0),
  rto_s           REAL,
  point_age_s     REAL NOT NULL,
  rpo_s           REAL,
  certificate     INTEGER,
  PRIMARY KEY (run_id, vm, point_id)
) STRICT, WITHOUT ROWID
"""

_POLICIES = """
CREATE TABLE policies (
  name     TEXT PRIMARY KEY,
  document TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""

_JOBS = """
CREATE TABLE jobs (
  name     TEXT PRIMARY KEY,
  kind     TEXT NOT NULL,
  policy   TEXT REFERENCES policies (name) ON DELETE RESTRICT,
  enabled  INTEGER NOT NULL CHECK (enabled IN (0, 1)),
  document TEXT NOT NULL,
  since    TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""

_JOB_RUNS = """
CREATE TABLE job_runs (
  seq        INTEGER PRIMARY KEY,
  run_id     TEXT NOT NULL UNIQUE,
  job        TEXT NOT NULL,
  kind       TEXT NOT NULL,
  cause      TEXT NOT NULL,
  first_run  TEXT NOT NULL,
  attempt    INTEGER NOT NULL CHECK (attempt >= 1),
  due_at     TEXT,
  queued_at  TEXT NOT NULL,
  started_at TEXT,
  ended_at   TEXT,
  outcome    TEXT CHECK (outcome IN ('success', 'warning', 'failed', 'cancelled')),
  error_code TEXT,
  error      TEXT,
  reasons    TEXT NOT NULL,
  result     TEXT NOT NULL,
  CHECK ((ended_at IS NULL) = (outcome IS NULL))
) STRICT
"""

_CHANNELS = """
CREATE TABLE channels (
  name          TEXT PRIMARY KEY,
  document      TEXT NOT NULL,
  sealed_secret BLOB,
  digest_until  TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""

_OUTBOX = """
CREATE TABLE outbox (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  channel    TEXT NOT NULL REFERENCES channels (name) ON DELETE CASCADE,
  message    TEXT NOT NULL,
  queued_at  TEXT NOT NULL,
  attempts   INTEGER NOT NULL,
  next_at    TEXT,
  ended_at   TEXT,
  state      TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'given-up')),
  error_code TEXT,
  error      TEXT,
  CHECK ((next_at IS NULL) = (state <> 'waiting')),
  CHECK ((ended_at IS NULL) = (state = 'waiting'))
) STRICT
"""

_SETTINGS = """
CREATE TABLE settings (
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""

_APPROVALS = """
CREATE TABLE approvals (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  kind         TEXT NOT NULL,
  objects      TEXT NOT NULL,
  reason       TEXT NOT NULL,
  requested_by TEXT NOT NULL,
  requested_at TEXT NOT NULL,
  expires_at   TEXT NOT NULL,
  state        TEXT NOT NULL
               CHECK (state IN ('waiting', 'approved', 'done', 'refused', 'expired')),
  decided_by   TEXT,
  decided_at   TEXT,
  CHECK (state NOT IN ('approved', 'done') OR decided_by <> requested_by)
) STRICT
"""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        _HOSTS,
        _INTENTS,
        "CREATE INDEX intents_by_run ON intents (run_id)",
        "CREATE INDEX intents_by_host ON intents (host)",
        _RUNS,
        "CREATE INDEX runs_by_vm ON runs (vm, run_id)",
    ),
    (_ACCOUNTS, _WEB_SESSIONS, _API_TOKENS, _AUDIT, *_AUDIT_KEPT),
    (
        _VERIFICATIONS,
        "CREATE INDEX verifications_by_vm ON verifications (vm, run_id)",
    ),
    (
        _POLICIES,
        _JOBS,
        _JOB_RUNS,
        # no two runs of a job and kind wait or go on at once, whatever starts them
        "CREATE UNIQUE INDEX one_open_job_run ON job_runs (job, kind) WHERE ended_at IS NULL",
        "CREATE INDEX job_runs_by_job ON job_runs (job, kind, seq)",
        "CREATE INDEX job_runs_by_due ON job_runs (job, kind, due_at)",
        "CREATE INDEX job_runs_by_chain ON job_runs (first_run)",
        "ALTER TABLE runs ADD COLUMN job_run TEXT",
        "CREATE INDEX runs_by_job_run ON runs (job_run, vm)",
    ),
    (
        # the same VM may be proven in the sandbox and on a host by one run
        _VERIFICATIONS.replace("TABLE verifications", "TABLE verifications_by_place").replace(
            "PRIMARY KEY (run_id, vm, point_id)",
            "place TEXT NOT NULL, reasons TEXT NOT NULL, PRIMARY KEY (run_id, vm, point_id, place)",
        ),
        "INSERT INTO verifications_by_place SELECT *, '', '' FROM verifications",
        "DROP TABLE verifications",
        "ALTER TABLE verifications_by_place RENAME TO verifications",
        "CREATE INDEX verifications_by_vm ON verifications (vm, run_id)",
    ),
    (
        _CHANNELS,
        _OUTBOX,
        "CREATE INDEX outbox_waiting ON outbox (next_at) WHERE state = 'waiting'",
        "CREATE INDEX outbox_by_channel ON outbox (channel, state, id)",
        "ALTER TABLE job_runs ADD COLUMN told INTEGER NOT NULL DEFAULT 0 CHECK (told IN (0, 1))",
        "UPDATE job_runs SET told = 1 WHERE ended_at IS NOT NULL",
        "CREATE INDEX job_runs_by_end ON job_runs (ended_at)",
        "CREATE INDEX job_runs_untold ON job_runs (seq) WHERE told = 0",
    ),
    POINT_TABLES,
    (_SETTINGS, _APPROVALS),
)
