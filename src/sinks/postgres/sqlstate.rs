//! What the error codes of PostgreSQL mean for a transaction.

/// Whether the fault behind a code (SQLSTATE) may pass, so that the transaction is written again.
/// Codes that are not known here are final: retries for ever would hide them.
pub fn is_transient_sqlstate(code: &str) -> bool {
    match code {
        // Lost connections; poolers answer "protocol violation" if they have no server to offer.
        // Serialization failures and deadlocks. No memory, disk or connection left. The password or
        // the access rules, which may be changed while the service runs.
        code if ["08", "28", "40", "53"].iter().any(|class| code.starts_with(class)) => true,
        // Shutdown, crash, start, failover; timeouts of idle sessions.
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" => true,
        // The server is, or has become, a standby or read-only.
        "25006" => true,
        // A lock that is not available; a canceled statement; an aborted transaction; a database
        // that takes no connections now; a statement that a pooler has lost; the file system.
        "55P03" | "57014" | "25P02" | "55000" | "26000" | "42P05" | "58000" | "58030" => true,
        // Internal errors: "tuple concurrently updated", "could not open relation" after its drop.
        "XX000" => true,
        _ => false,
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
    fn sqlstates_of_passing_faults_are_retried() {
        for code in [
            "08000", "08003", "08006", "08P01", "25006", "25P02", "25P03", "28P01", "40001", "40P01",
            "53100", "53200", "53300", "53400", "55P03", "57014", "57P01", "57P02", "57P03", "58030",
            "XX000",
        ] {
            assert!(is_transient_sqlstate(code), "{code}");
        }
    }

    #[test]
    fn sqlstates_of_lasting_faults_end_the_run_and_say_what_to_do() {
        for code in ["22003", "0A000", "XX001", "XX002", "SW001", "57P04", "58P01"] {
            assert!(!is_transient_sqlstate(code), "{code}");
        }
        for code in ["23505", "23514", "42501", "42P01", "3D000"] {
            assert!(!is_transient_sqlstate(code) && sqlstate_remedy(code).starts_with(": "), "{code}");
        }
    }
}
