//! The statements that change a table. All parameters are arrays, one for each column, so a
//! statement changes any number of rows.
//!
//! Names and types are in the statements and their parameters, so that nothing has to be prepared.

use super::columns::{Column, PARTITIONED, TableColumns, columns_of};
use super::plan::PostgresTable;
use super::schema::SchemaName;

/// The statements of a table.
#[derive(Debug)]
pub(super) struct TableStatements {
    /// Appends rows from a binary COPY.
    pub copy: String,
    /// Appends rows. The parameters are all columns.
    pub insert: String,
    /// Appends rows, or changes those that exist. The parameters are all columns.
    pub upsert: String,
    /// Changes rows. The parameters are all columns, and the range of `reading_at` if the table is
    /// partitioned.
    pub update: String,
    /// Deletes rows. The parameters are the columns of the key, and the range of `reading_at` if
    /// the table is partitioned.
    pub delete: String,
    /// The number, from 1, of the first of these keys that the table has, and the name of its city.
    /// The parameters are the columns of the key.
    pub find_existing: String,
    /// The same of the first key that the table does not have.
    pub find_missing: String,
}

impl TableStatements {
    pub fn new(schema: &SchemaName, table: PostgresTable) -> TableStatements {
        let columns = columns_of(table);
        let name = format!("{}.{}", schema.quoted(), quoted(table.name()));
        let all = names(columns.all.iter().copied());
        let insert =
            format!("insert into {name} ({all}) select * from {}", unnest(columns.all.iter().copied()));
        TableStatements {
            copy: format!("copy {name} ({all}) from stdin (format binary)"),
            upsert: format!("{insert} {}", on_conflict(columns)),
            update: update_statement(&name, table, columns),
            delete: delete_statement(&name, table, columns),
            find_existing: find_statement(schema, &name, table, "exists"),
            find_missing: find_statement(schema, &name, table, "not exists"),
            insert,
        }
    }
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

fn names(columns: impl Iterator<Item = Column>) -> String {
    columns.map(|column| quoted(column.name)).collect::<Vec<_>>().join(", ")
}

/// Array parameters, from the first on, as the rows of a table `new`.
fn unnest(columns: impl Iterator<Item = Column> + Clone) -> String {
    let parameters = (1..=columns.clone().count()).map(|number| format!("${number}"));
    format!("unnest({}) as new({})", parameters.collect::<Vec<_>>().join(", "), names(columns))
}

/// The condition that a row of the table, `old`, has the key of a row of `new`.
fn same_key(columns: &TableColumns) -> String {
    let same = |column: Column| format!("old.{0} = new.{0}", quoted(column.name));
    columns.key_columns().map(same).collect::<Vec<_>>().join(" and ")
}

/// The range of `reading_at`, so that only partitions of these days are planned for. Its parameters
/// follow `before` others.
fn day_range(table: PostgresTable, before: usize) -> String {
    match PARTITIONED.contains(&table) {
        true => format!(" and old.reading_at >= ${} and old.reading_at <= ${}", before + 1, before + 2),
        false => String::new(),
    }
}

fn on_conflict(columns: &TableColumns) -> String {
    if columns.upsert.is_empty() {
        return "on conflict do nothing".to_owned();
    }
    let set = columns.upsert.iter().map(|index| {
        let column = quoted(columns.all[*index].name);
        format!("{column} = excluded.{column}")
    });
    let set = set.collect::<Vec<_>>().join(", ");
    format!("on conflict ({}) do update set {set}", names(columns.key_columns()))
}

fn update_statement(name: &str, table: PostgresTable, columns: &TableColumns) -> String {
    let is_set = |index: &usize| !columns.key.contains(index);
    let set = (0..columns.all.len()).filter(is_set).map(|index| {
        let column = quoted(columns.all[index].name);
        format!("{column} = new.{column}")
    });
    let set = set.collect::<Vec<_>>().join(", ");
    let (new, same, range) =
        (unnest(columns.all.iter().copied()), same_key(columns), day_range(table, columns.all.len()));
    format!("update {name} as old set {set} from {new} where {same}{range}")
}

fn delete_statement(name: &str, table: PostgresTable, columns: &TableColumns) -> String {
    let keys: Vec<Column> = columns.key_columns().collect();
    let (new, same, range) = (unnest(keys.iter().copied()), same_key(columns), day_range(table, keys.len()));
    format!("delete from {name} as old using {new} where {same}{range}")
}

fn find_statement(schema: &SchemaName, name: &str, table: PostgresTable, exists: &str) -> String {
    let columns = columns_of(table);
    let keys: Vec<Column> = columns.key_columns().collect();
    let parameters = (1..=keys.len()).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ");
    let city = match keys.iter().any(|column| column.name == "city_id") {
        true => format!("(select c.name from {}.city c where c.city_id = new.city_id)", schema.quoted()),
        false => "null::text".to_owned(),
    };
    format!(
        "select new.number, {city} from unnest({parameters}) with ordinality as new({}, number) \
         where {exists} (select from {name} as old where {}) order by new.number limit 1",
        names(keys.into_iter()),
        same_key(columns)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_name_columns_and_prune_partitions() {
        let schema = SchemaName::new("a\"b").unwrap();
        let now = TableStatements::new(&schema, PostgresTable::Hour);
        assert!(
            now.copy.starts_with("copy \"a\"\"b\".\"hour\" (\"city_id\", \"hour_at\", \"readings\","),
            "{}",
            now.copy
        );
        assert!(
            now.update
                .ends_with("where old.\"city_id\" = new.\"city_id\" and old.\"hour_at\" = new.\"hour_at\"")
        );
        let reading = TableStatements::new(&schema, PostgresTable::Reading);
        assert_eq!(
            reading.delete,
            "delete from \"a\"\"b\".\"reading\" as old using unnest($1, $2) as new(\"city_id\", \"reading_at\") \
             where old.\"city_id\" = new.\"city_id\" and old.\"reading_at\" = new.\"reading_at\" \
             and old.reading_at >= $3 and old.reading_at <= $4"
        );
        assert!(
            reading.update.ends_with("old.reading_at >= $9 and old.reading_at <= $10"),
            "{}",
            reading.update
        );
        let city = TableStatements::new(&schema, PostgresTable::City);
        assert!(
            city.upsert.ends_with("on conflict (\"city_id\") do update set \"exact\" = excluded.\"exact\"")
        );
    }
}
