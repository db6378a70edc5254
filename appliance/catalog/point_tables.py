"""The tables of `points.py`, and the triggers that keep sums per VM and per day in step."""

from __future__ import annotations

_POINTS = """
CREATE TABLE points (
  point_id     TEXT PRIMARY KEY,
  vm           TEXT NOT NULL,
  vm_key       TEXT,
  created_at   TEXT NOT NULL,
  consistency  TEXT NOT NULL,
  parent       TEXT,
  source       TEXT NOT NULL,
  disk_count   INTEGER NOT NULL,
  size_bytes   INTEGER NOT NULL,
  stored_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID
"""

_POINT_VMS = """
CREATE TABLE point_vms (
  vm           TEXT PRIMARY KEY,
  vm_key       TEXT,
  point_count  INTEGER NOT NULL,
  stored_bytes INTEGER NOT NULL,
  newest_id    TEXT NOT NULL,
  newest_at    TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""

_POINT_DAYS = """
CREATE TABLE point_days (
  day          TEXT PRIMARY KEY,
  point_count  INTEGER NOT NULL,
  stored_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID
"""

_ADDED = """
CREATE TRIGGER point_added AFTER INSERT ON points BEGIN
  INSERT INTO point_vms VALUES
    (new.vm, new.vm_key, 1, new.stored_bytes, new.point_id, new.created_at)
    ON CONFLICT (vm) DO UPDATE SET
      point_count = point_count + 1,
      stored_bytes = stored_bytes + new.stored_bytes,
      vm_key = iif((new.created_at, new.point_id) > (newest_at, newest_id), new.vm_key, vm_key),
      newest_id = iif((new.created_at, new.point_id) > (newest_at, newest_id),
                      new.point_id, newest_id),
      newest_at = max(newest_at, new.created_at);
  INSERT INTO point_days VALUES (substr(new.created_at, 1, 10), 1, new.stored_bytes)
    ON CONFLICT (day) DO UPDATE SET
      point_count = point_count + 1, stored_bytes = stored_bytes + new.stored_bytes;
END
"""

_REMOVED = """
CREATE TRIGGER point_removed AFTER DELETE ON points BEGIN
  UPDATE point_vms SET
    point_count = point_count - 1, stored_bytes = stored_bytes - old.stored_bytes
    WHERE vm = old.vm;
  DELETE FROM point_vms WHERE vm = old.vm AND point_count = 0;
  UPDATE point_vms SET (newest_id, newest_at, vm_key) =
    (SELECT point_id, created_at, vm_key FROM points
     WHERE vm = old.vm ORDER BY created_at DESC, point_id DESC LIMIT 1)
    WHERE vm = old.vm AND newest_id = old.point_id;
  UPDATE point_days SET
    point_count = point_count - 1, stored_bytes = stored_bytes - old.stored_bytes
    WHERE day = substr(old.created_at, 1, 10);
  DELETE FROM point_days WHERE day = substr(old.created_at, 1, 10) AND point_count = 0;
END
"""

POINT_TABLES = (
    _POINTS,
    "CREATE INDEX points_by_vm ON points (vm, point_id)",
    "CREATE INDEX points_by_vm_and_time ON points (vm, created_at, point_id)",
    _POINT_VMS,
    _POINT_DAYS,
    _ADDED,
    _REMOVED,
)
