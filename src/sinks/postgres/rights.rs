//! Checks, without a change, that the role may write the tables of a schema.

use tokio_postgres::types::Type;

use super::connection::{Parameter, Session};
use super::error::PostgresError;
use super::plan::{PostgresSinkPlan, PostgresTable};
use super::schema::SchemaName;

/// Whether the role may use the schema, and of each table: whether it exists, is written by the
/// role, and is owned by it.
const RIGHTS_QUERY: &str = "select pg_catalog.has_schema_privilege(n.oid, 'usage'), t.name, c.oid is not null, \
     coalesce((select pg_catalog.bool_and(pg_catalog.has_table_privilege(c.oid, p)) \
     from unnest(array['select', 'insert', 'update', 'delete']) p), false), \
     coalesce(pg_catalog.pg_has_role(c.relowner, 'usage'), false), current_user::text \
     from pg_catalog.pg_namespace n cross join unnest($2) t(name) \
     left join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.name \
     where n.nspname = $1 order by t.name";

/// Whether the partitions of a table are made by the writer. Only the owner of a table can attach
/// partitions to it.
fn is_partitioned(table: &str) -> bool {
    let partitioned = [PostgresTable::Reading, PostgresTable::Arrival, PostgresTable::RollingRow];
    partitioned.into_iter().any(|own| own.name() == table)
}

/// Fails if a table is missing or the role may not write it.
pub async fn check_rights(session: &Session, plan: &PostgresSinkPlan) -> Result<(), PostgresError> {
    let schema: &SchemaName = &plan.schema;
    let mut tables: Vec<&str> = plan.tables.iter().map(PostgresTable::name).collect();
    tables.extend(["shard", "setting"]);
    let parameters: [Parameter<'_>; 2] = [(&schema.as_str(), Type::TEXT), (&tables, Type::TEXT_ARRAY)];
    let failed = |problem: String| PostgresError::Rights {
        database: session.database.to_string(),
        schema: schema.as_str().to_owned(),
        problem,
    };
    for row in session.query(RIGHTS_QUERY, &parameters).await? {
        let (may_use, exists): (bool, bool) = (session.column(&row, 0)?, session.column(&row, 2)?);
        let (may_write, is_owner): (bool, bool) = (session.column(&row, 3)?, session.column(&row, 4)?);
        let (table, role): (&str, &str) = (session.column(&row, 1)?, session.column(&row, 5)?);
        if !may_use {
            return Err(failed(format!("the role {role} may not use the schema")));
        }
        if !exists {
            return Err(failed(format!("the table {table} is missing: run `swelter postgres migrate`")));
        }
        if !may_write {
            return Err(failed(format!(
                "the role {role} may not select, insert, update and delete in {table}"
            )));
        }
        if plan.create_tables && is_partitioned(table) && !is_owner {
            return Err(failed(format!(
                "the role {role} does not own {table}, and only the owner can add partitions: make it the owner, or set create_tables = false \
                 and add them yourself"
            )));
        }
    }
    Ok(())
}
