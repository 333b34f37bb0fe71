-- log.db: the truth. Every table changes only in the transaction that moves the cursor (design D3).
-- seal: a hash over the row's other values, by which verify finds one that has changed (docs/adr/0012).

CREATE TABLE log (
    only_row     INTEGER PRIMARY KEY CHECK (only_row = 1),
    epoch        TEXT NOT NULL,      -- the log's own id, part of every client's cursor; new after a restore
    created_at   TEXT NOT NULL,
    parked_ids   INTEGER NOT NULL,   -- given so far: none is given twice
    seal         TEXT NOT NULL
) STRICT;

CREATE TABLE cursor (
    only_row       INTEGER PRIMARY KEY CHECK (only_row = 1),
    stream_created TEXT,             -- which intake stream this log follows: its creation time
    sequence       INTEGER NOT NULL, -- consumed so far
    seal           TEXT NOT NULL
) STRICT;

CREATE TABLE events (
    position       INTEGER PRIMARY KEY,
    event_id       TEXT NOT NULL UNIQUE,
    user_id        TEXT NOT NULL,
    session_id     TEXT NOT NULL,
    version        INTEGER NOT NULL,
    turn_id        TEXT,
    type           TEXT NOT NULL,
    schema_version INTEGER NOT NULL,
    recorded_at    TEXT NOT NULL,
    data_hash      TEXT NOT NULL,
    body           BLOB NOT NULL,    -- the envelope's bytes, as they were received
    body_hash      BLOB NOT NULL,
    hash           BLOB NOT NULL,    -- the chain: over hashes, so that a text erased later leaves it whole
    UNIQUE (user_id, session_id, version)
) STRICT;

-- A belt: no bug of decide can give a turn two ends.
CREATE UNIQUE INDEX one_terminal_per_turn ON events (user_id, turn_id)
    WHERE type IN ('answer_completed', 'answer_failed', 'answer_cancelled');

-- The message that opened a turn: finds a turn's session, and all turns when unfinished ones are looked for.
CREATE INDEX turns_opened ON events (user_id, turn_id, session_id, position)
    WHERE type = 'user_message_submitted';

-- Refusals, and events that changed nothing: what became of an event that is not in the log. Kept 7 days.
CREATE TABLE outcomes (
    user_id    TEXT NOT NULL,
    event_id   TEXT NOT NULL,
    session_id TEXT NOT NULL,
    turn_id    TEXT,
    data_hash  TEXT NOT NULL,
    code       TEXT,                 -- NULL: recorded, without an event of its own
    position   INTEGER,
    version    INTEGER,
    decided_at TEXT NOT NULL,
    seal       TEXT NOT NULL,
    PRIMARY KEY (user_id, event_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX outcomes_by_age ON outcomes (decided_at);

-- What could not be read or decided, byte for byte, for an operator.
CREATE TABLE parked (
    parked_id INTEGER PRIMARY KEY,
    sequence  INTEGER NOT NULL,
    subject   TEXT NOT NULL,
    headers   TEXT NOT NULL,
    body      BLOB NOT NULL,
    reason    TEXT NOT NULL,
    parked_at TEXT NOT NULL,
    seal      TEXT NOT NULL
) STRICT;
