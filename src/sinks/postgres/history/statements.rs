//! The statements that read results back. Each is one snapshot: how far the database is comes with
//! the rows, in the first column of every line.

use crate::sinks::postgres::schema::SchemaName;

/// The statements, for one schema.
pub struct Statements {
    /// `$1` city, `$2` from, `$3` to, `$4` lines: final until, time, heat index, category, sum,
    /// count.
    pub final_rows: String,
    /// `$1` city, `$2` from, `$3` to, `$4` lines, `$5` epoch: complete until, then as above.
    pub rows_as_of: String,
    /// `$1` city, `$2` time of the row, `$3` first reading, `$4` lines: final until, heat index,
    /// category, sum and count of the row; time, heat index, category and measurement of a reading.
    pub explain_final_row: String,
    /// `$1` city, `$2` first time, `$3` last time, `$4` epoch, `$5` arrivals of a key: complete
    /// until, and an arrival.
    pub arrivals: String,
    /// `$1` first instant, `$2` end: city, time, measurement, heat index, category, sum, count.
    pub rows_of_day: String,
    /// The newest epoch that all shards have reached.
    pub complete_until: String,
}

impl Statements {
    pub fn new(schema: &SchemaName) -> Statements {
        let of = |statement: &str| statement.replace("{s}", &schema.quoted());
        Statements {
            final_rows: of(FINAL_ROWS),
            rows_as_of: of(ROWS_AS_OF),
            explain_final_row: of(EXPLAIN_FINAL_ROW),
            arrivals: of(ARRIVALS),
            rows_of_day: of(ROWS_OF_DAY),
            complete_until: of(COMPLETE_UNTIL),
        }
    }
}

// A left join, so that a city without rows in the range has a line that says how far it is known.
const FINAL_ROWS: &str = "\
select n.high - {s}.lateness(), r.reading_at, r.heat_index_e6, r.category, r.sum_e6, r.count
from {s}.city_range c
join {s}.now n on n.city_id = c.city_id
left join lateral (
    select w.*
    from (
        select h.reading_at, h.heat_index_e6, h.category, (sum(h.heat_index_e6) over span)::bigint as sum_e6,
            count(*) over span as count
        from {s}.reading h
        where h.city_id = c.city_id and h.reading_at >= $2 - {s}.rolling_window()
            and h.reading_at < least($3, n.high - {s}.lateness())
        window span as (order by h.reading_at range between {s}.rolling_window() preceding and current row)
    ) w
    where w.reading_at >= greatest($2, c.rolling_from)
    order by w.reading_at
    limit $4
) r on true
where c.city = $1
order by r.reading_at";

const ROWS_AS_OF: &str = "\
select c.epoch, r.reading_at, r.heat_index_e6, r.category, r.sum_e6, r.count
from {s}.city_range c
left join lateral (
    select w.*
    from (
        select h.reading_at, h.heat_index_e6, h.category, (sum(h.heat_index_e6) over span)::bigint as sum_e6,
            count(*) over span as count
        from (
            select distinct on (a.reading_at) a.reading_at, a.heat_index_e6, a.category
            from {s}.arrival a
            where a.city_id = c.city_id and a.reading_at >= $2 - {s}.rolling_window() and a.reading_at < $3
                and a.as_of <= $5 and a.outcome <> 7
            order by a.reading_at, a.as_of desc, a.seq desc
        ) h
        where h.heat_index_e6 is not null
        window span as (order by h.reading_at range between {s}.rolling_window() preceding and current row)
    ) w
    where w.reading_at >= greatest($2, c.rolling_from)
    order by w.reading_at
    limit $4
) r on $5 <= c.epoch
where c.city = $1
order by r.reading_at";

// The row is there only if it is final, and if its whole window is kept.
const EXPLAIN_FINAL_ROW: &str = "\
select n.high - {s}.lateness(), x.heat_index_e6, x.category, x.sum_e6, x.count, r.reading_at, r.heat_index_e6,
    r.category, r.temperature, r.humidity, r.wind_speed
from {s}.city_range c
join {s}.now n on n.city_id = c.city_id
left join lateral (
    select e.heat_index_e6, e.category, w.sum_e6, w.count
    from {s}.reading e
    cross join lateral (
        select sum(h.heat_index_e6)::bigint as sum_e6, count(*) as count
        from {s}.reading h
        where h.city_id = c.city_id and h.reading_at between $2 - {s}.rolling_window() and $2
    ) w
    where e.city_id = c.city_id and e.reading_at = $2 and $2 >= c.rolling_from
        and $2 < n.high - {s}.lateness()
) x on true
left join lateral (
    select h.*
    from {s}.reading h
    where h.city_id = c.city_id and h.reading_at between greatest($2 - {s}.rolling_window(), $3) and $2
    order by h.reading_at
    limit $4
) r on x.count is not null
where c.city = $1
order by r.reading_at";

const ARRIVALS: &str = "\
select c.epoch, a.reading_at, a.as_of, a.source, a.partition, a.position, a.arrived_at, a.temperature, a.humidity,
    a.wind_speed, a.revision, o.name, a.heat_index_e6, a.omitted
from {s}.city_range c
left join lateral (
    select e.*, greatest(count(*) over of_key - $5, 0) as omitted, row_number() over of_key_newest as newest
    from {s}.arrival e
    where e.city_id = c.city_id and e.reading_at between $2 and $3 and e.as_of <= $4
    window of_key as (partition by e.reading_at),
        of_key_newest as (partition by e.reading_at order by e.as_of desc, e.seq desc)
) a on a.newest <= $5
left join {s}.outcome o on o.code = a.outcome
where c.city = $1
order by a.reading_at, a.as_of, a.seq";

const ROWS_OF_DAY: &str = "\
select c.city, r.reading_at, r.temperature, r.humidity, r.wind_speed, r.heat_index_e6, r.category, r.sum_e6, r.count
from (
    select h.city_id, h.reading_at, h.temperature, h.humidity, h.wind_speed, h.heat_index_e6, h.category,
        (sum(h.heat_index_e6) over span)::bigint as sum_e6, count(*) over span as count
    from {s}.reading h
    where h.reading_at >= $1 - {s}.rolling_window() and h.reading_at < $2
    window span as (
        partition by h.city_id order by h.reading_at range between {s}.rolling_window() preceding and current row
    )
) r
join {s}.city_range c on c.city_id = r.city_id
where r.reading_at >= greatest($1, c.rolling_from)
order by r.city_id, r.reading_at";

const COMPLETE_UNTIL: &str = "select min(epoch) from {s}.shard";
