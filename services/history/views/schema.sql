-- views-N.db: computed from the log, and rebuilt from it whenever it is missing or does not fit.

CREATE TABLE checkpoint (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    position INTEGER NOT NULL,   -- folded so far
    hash BLOB                    -- and the log's hash there: another one means another log
) STRICT;

CREATE TABLE sessions (
    user_id    TEXT NOT NULL,
    session_id TEXT NOT NULL,
    name       TEXT,
    title      TEXT,
    model      TEXT,
    system     TEXT,
    on_busy    TEXT NOT NULL,
    head       TEXT,             -- the answer that the next message follows
    version    INTEGER NOT NULL,
    position   INTEGER NOT NULL, -- of its latest event
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    deleted_at TEXT,             -- NULL: it is there
    place      INTEGER PRIMARY KEY, -- of its title among the words: before every message
    UNIQUE (user_id, session_id)
) STRICT;

CREATE INDEX sessions_by_activity ON sessions (user_id, position);

CREATE TABLE messages (
    user_id    TEXT NOT NULL,
    session_id TEXT NOT NULL,
    message_id TEXT NOT NULL,
    parent_id  TEXT,
    place      INTEGER PRIMARY KEY, -- order within the session, by the event that brought it
    role       TEXT NOT NULL,
    text       TEXT NOT NULL,
    thinking   TEXT,
    turn_id    TEXT,             -- NULL: it was said elsewhere, and imported
    status     TEXT NOT NULL,
    code       TEXT,
    end        TEXT,
    model      TEXT,
    usage      TEXT,
    position   INTEGER NOT NULL, -- of the event that holds its text
    version    INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    UNIQUE (user_id, session_id, message_id)
) STRICT;

-- An index ends with its rows' place.
CREATE INDEX messages_in_order ON messages (user_id, session_id);

CREATE TABLE turns (
    user_id    TEXT NOT NULL,
    session_id TEXT NOT NULL,
    turn_id    TEXT NOT NULL,
    event_id   TEXT NOT NULL,
    message_id TEXT NOT NULL,
    answer_id  TEXT NOT NULL,
    status     TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    model      TEXT,
    code       TEXT,
    position   INTEGER NOT NULL, -- of its message
    version    INTEGER NOT NULL, -- of its latest event
    created_at TEXT NOT NULL,
    ended_at   TEXT,
    PRIMARY KEY (user_id, turn_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX turns_in_order ON turns (user_id, session_id, position);

-- The words of texts and titles, under the row's place. owner: hex(user_id), one token, which each query holds: nobody's
-- words are found by another. The index keeps no text; what leaves it is told to it (docs/adr/0009).
CREATE VIRTUAL TABLE words USING fts5 (owner, title, text, content = '', tokenize = 'unicode61');

-- What one transaction adds is sorted in memory up to here: all of a rebuild's batch (docs/adr/0009).
INSERT INTO words (words, rank) VALUES ('hashsize', 16777216);
