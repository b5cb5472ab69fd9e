//! What the error codes of PostgreSQL mean for a transaction.

/// What to do after an error, by its code (SQLSTATE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqlFault {
    /// Roll back, and write the transaction again.
    RollBack,
    /// The session is lost or of no more use: connect again.
    Reconnect,
    /// A retry does not help.
    Final,
}

/// The class of an error. Codes that are not known here are final: a retry for ever would hide
/// them.
pub fn classify_sqlstate(code: &str) -> SqlFault {
    match code {
        // Protocol violations are what poolers answer if they have no server to offer.
        code if code.starts_with("08") => SqlFault::Reconnect,
        // Shutdown, crash, start, failover, timeouts of idle sessions; a pooler that lost a
        // statement.
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" | "26000" | "42P05" => SqlFault::Reconnect,
        // The server is, or has become, a standby or read-only.
        "25006" => SqlFault::Reconnect,
        // The password or the access rules may be changed while the service runs.
        code if code.starts_with("28") => SqlFault::Reconnect,
        // Too many connections, seen only by a new session; the same for a database that does not
        // accept any.
        "53300" | "55000" => SqlFault::Reconnect,
        // Serialization failures and deadlocks; no memory, no disk, a limit of configuration; locks
        // that are not available; a canceled statement; an aborted transaction; the file system.
        code if code.starts_with("40") || code.starts_with("53") => SqlFault::RollBack,
        "55P03" | "57014" | "25P02" | "58000" | "58030" => SqlFault::RollBack,
        // Internal errors: "tuple concurrently updated", "could not open relation" after its drop.
        "XX000" => SqlFault::RollBack,
        _ => SqlFault::Final,
    }
}

/// What a person can do about an error; it is appended to the error's text. Empty if the text says
/// enough.
pub fn sqlstate_remedy(code: &str) -> &'static str {
    match code {
        "53100" => ": the database has no space: free some, results wait until then",
        "53200" => ": the database has no memory left: results wait until then",
        "53300" => {
            ": the database takes no more connections: raise max_connections, or use fewer shards with a pooler"
        }
        "25006" => {
            ": the database is read-only or a standby: name the primary too, as in postgres://a,b/name; results wait until it takes writes"
        }
        "28P01" | "28000" => {
            ": look at the user of the URL, at password or passfile, and at pg_hba.conf of the server"
        }
        "3D000" => ": create the database, or name another one in the URL",
        "42501" => ": grant it: docs/postgres.md, \"Rights\", has the statements",
        "42P01" | "42703" | "3F000" | "42883" => {
            ": the schema is not as `swelter postgres migrate` made it: restore it, or name another schema to begin anew"
        }
        "23505" | "23503" | "21000" => {
            ": rows are there that swelter did not write, or whose progress was lost: name another schema to begin anew, and let nothing else \
             write to this one"
        }
        "23514" => {
            ": a partition is missing: set create_tables = true, or create the partition (docs/postgres.md, \"Partitions\")"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstate_classes_of_passing_faults_are_retried() {
        for code in ["40001", "40P01", "53100", "53200", "53400", "55P03", "57014", "25P02", "58030", "XX000"] {
            assert_eq!(classify_sqlstate(code), SqlFault::RollBack, "{code}");
        }
        for code in ["08000", "08003", "08006", "08P01", "57P01", "57P02", "57P03", "25006", "53300", "28P01"] {
            assert_eq!(classify_sqlstate(code), SqlFault::Reconnect, "{code}");
        }
    }

    #[test]
    fn sqlstate_of_lasting_faults_ends_the_run() {
        for code in ["23505", "23514", "42501", "42P01", "22003", "0A000", "3D000", "XX001", "XX002", "SW001"] {
            assert_eq!(classify_sqlstate(code), SqlFault::Final, "{code}");
        }
        for code in ["23505", "23514", "42501", "42P01", "3D000"] {
            assert!(sqlstate_remedy(code).starts_with(": "), "{code}");
        }
    }
}
