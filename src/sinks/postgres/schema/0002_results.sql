-- Functions and views. Bodies in BEGIN ATOMIC are bound when they are created, so they survive a
-- rename of the schema and do not depend on the search_path of a session.

create function fahrenheit(e6 bigint) returns double precision
language sql immutable parallel safe
return e6::double precision / 1000000::double precision;
comment on function fahrenheit(bigint) is '°F of a heat index in 1e-6 °F: the double nearest to it.';

-- One division of exact operands where both fit a double. Beyond that the quotient has 60 digits,
-- which decide how it is rounded: two such quotients and the middle between two doubles differ by more.
create function mean_fahrenheit(sum_e6 bigint, readings bigint) returns double precision
language sql immutable parallel safe
return case
    when sum_e6 between -9007199254740992 and 9007199254740992 and readings <= 9007199254
        then sum_e6::double precision / (readings * 1000000)::double precision
    else (sum_e6::numeric(100, 60) / (readings::numeric * 1000000))::double precision
end;
comment on function mean_fahrenheit(bigint, bigint) is
    'The mean in °F of so many readings whose heat indexes add up to sum_e6 (1e-6 °F): the double nearest to it.';

create function category_name(code smallint) returns text
language sql immutable parallel safe
return (array['none', 'caution', 'extreme_caution', 'danger', 'extreme_danger'])[code + 1];
comment on function category_name(smallint) is 'category.name of a code.';

create function outcome_name(code smallint) returns text
language sql immutable parallel safe
return (array[
    'inserted', 'corrected', 'withdrawn', 'nothing_to_withdraw', 'old_revision', 'superseded', 'too_late', 'held',
    'retried'
])[code];
comment on function outcome_name(smallint) is 'outcome.name of a code.';

create function epoch_at(moment timestamptz) returns bigint
language sql immutable parallel safe
return floor(extract(epoch from moment) * 1000)::bigint;
comment on function epoch_at(timestamptz) is
    'The epoch of a moment by the ingest clock: milliseconds since 1970. It is the as_of of what was known then.';

create function epoch_time(epoch bigint) returns timestamptz
language sql immutable parallel safe
return timestamptz '1970-01-01 00:00:00+00' + epoch * interval '1 millisecond';
comment on function epoch_time(bigint) is 'The moment of an epoch by the ingest clock.';

-- Milliseconds, not days: a day of an interval has 23 or 25 hours when the clocks of the session's zone
-- change.
create function rolling_window() returns interval
language sql stable parallel safe
begin atomic
    select value::bigint * interval '1 millisecond' from setting where name = 'window_ms';
end;
comment on function rolling_window() is 'The window of rolling means; both its ends belong to it.';

create function lateness() returns interval
language sql stable parallel safe
begin atomic
    select value::bigint * interval '1 millisecond' from setting where name = 'lateness_ms';
end;
comment on function lateness() is 'A reading may come so much later than the newest of its city.';

-- It names no table, so that it needs no search_path.
create function require_committed(city text, at bigint, epoch bigint) returns boolean
language plpgsql stable parallel safe as $$
begin
    if epoch is null or at > epoch then
        raise exception 'as_of % is not committed in this database, which is complete up to % for the city %',
                at, coalesce(epoch::text, 'nothing'), city
            using errcode = 'SW001', hint = 'Ask for an earlier as_of, or again a moment later.';
    end if;
    return true;
end
$$;
comment on function require_committed(text, bigint, bigint) is
    'Fails with SQLSTATE SW001 if an epoch is beyond the committed one of a city.';

-- A scalar sub-select is evaluated once a query, the function once a row.
create view city_range as
select c.city_id, c.name as city, c.exact, c.zone, s.epoch,
    coalesce(
        greatest(c.begins, s.kept_from::timestamp at time zone 'UTC') + (select rolling_window()), timestamptz '-infinity'
    ) as rolling_from
from city c join shard s on s.shard = c.shard;
comment on view city_range is 'What this database can answer of each city.';
comment on column city_range.city_id is 'city.city_id.';
comment on column city_range.city is 'city.name.';
comment on column city_range.exact is 'city.exact.';
comment on column city_range.zone is 'city.zone.';
comment on column city_range.epoch is 'The newest epoch of the city that is written completely.';
comment on column city_range.rolling_from is
    'Rolling means begin here: a window after the oldest reading that is kept. -infinity: at the first reading.';

create view result_rows as
select c.city, r.reading_at, r.temperature, r.humidity, r.wind_speed, fahrenheit(r.heat_index_e6) as heat_index,
    mean_fahrenheit(r.sum_e6, r.count) as rolling_heat_index, r.count, category_name(r.category) as category
from city_range c cross join lateral (
    select reading_at, temperature, humidity, wind_speed, heat_index_e6, category,
        (sum(heat_index_e6) over span)::bigint as sum_e6, count(*) over span as count
    from reading
    where reading.city_id = c.city_id
    window span as (order by reading_at range between rolling_window() preceding and current row)
) r
where r.reading_at >= c.rolling_from;
comment on view result_rows is
    'Every result row. A query by city reads all readings of it that are kept; the function rolling reads only a range of time.';
comment on column result_rows.city is 'city.name.';
comment on column result_rows.reading_at is 'When the reading was taken.';
comment on column result_rows.temperature is '°F; null if not known.';
comment on column result_rows.humidity is 'Relative humidity as measured, 0 to 105 %; null if not known.';
comment on column result_rows.wind_speed is 'mph; null if not measured.';
comment on column result_rows.heat_index is 'Heat index of the reading, °F.';
comment on column result_rows.rolling_heat_index is 'Mean of the heat indexes of the window that ends with the reading, °F.';
comment on column result_rows.count is 'Number of readings in that window.';
comment on column result_rows.category is 'Danger category of the heat index of the reading.';

create function rolling(city text, "from" timestamptz, "to" timestamptz)
returns table (
    reading_at timestamptz, heat_index double precision, rolling_heat_index double precision, count bigint, category text
)
language sql stable parallel safe rows 1500
begin atomic
    select r.reading_at, fahrenheit(r.heat_index_e6), mean_fahrenheit(r.sum_e6, r.count), r.count, category_name(r.category)
    from city_range c cross join lateral (
        select h.reading_at, h.heat_index_e6, h.category, (sum(h.heat_index_e6) over span)::bigint as sum_e6,
            count(*) over span as count
        from reading h
        where h.city_id = c.city_id
            and h.reading_at >= rolling."from" - rolling_window() and h.reading_at < rolling."to"
        window span as (order by h.reading_at range between rolling_window() preceding and current row)
    ) r
    where c.city = rolling.city and r.reading_at >= rolling."from" and r.reading_at >= c.rolling_from;
end;
comment on function rolling(text, timestamptz, timestamptz) is
    'The result rows of a city with reading_at in [from, to), in °F, as they are now. Reads the readings from one window before.';

-- The arrival that came last decides what a city and time had, also if it changed nothing. One that
-- was too late (7) says nothing of it. OFFSET 0 keeps the check of the epoch before all else: it must
-- fail also if the range has no arrival.
create function rolling_as_of(city text, "from" timestamptz, "to" timestamptz, at bigint)
returns table (
    reading_at timestamptz, heat_index double precision, rolling_heat_index double precision, count bigint, category text
)
language sql stable parallel safe rows 1500
begin atomic
    select r.reading_at, fahrenheit(r.heat_index_e6), mean_fahrenheit(r.sum_e6, r.count), r.count, category_name(r.category)
    from (
        select k.city_id, k.rolling_from
        from city_range k
        where k.city = rolling_as_of.city and require_committed(k.city, rolling_as_of.at, k.epoch)
        offset 0
    ) c cross join lateral (
        select h.reading_at, h.heat_index_e6, h.category, (sum(h.heat_index_e6) over span)::bigint as sum_e6,
            count(*) over span as count
        from (
            select distinct on (a.reading_at) a.reading_at, a.heat_index_e6, a.category
            from arrival a
            where a.city_id = c.city_id
                and a.reading_at >= rolling_as_of."from" - rolling_window() and a.reading_at < rolling_as_of."to"
                and a.as_of <= rolling_as_of.at and a.outcome <> 7
            order by a.reading_at, a.as_of desc, a.seq desc
        ) h
        where h.heat_index_e6 is not null
        window span as (order by h.reading_at range between rolling_window() preceding and current row)
    ) r
    where r.reading_at >= rolling_as_of."from" and r.reading_at >= c.rolling_from;
end;
comment on function rolling_as_of(text, timestamptz, timestamptz, bigint) is
    'The result rows of a city with reading_at in [from, to), in °F, as they were at an epoch. An epoch that is not committed is refused with SQLSTATE SW001.';

create view arrival_rows as
select c.name as city, a.reading_at, a.as_of, a.seq, a.source, a.partition, a.position, a.arrived_at,
    outcome_name(a.outcome) as outcome, a.temperature, a.humidity, a.wind_speed, a.revision,
    fahrenheit(a.heat_index_e6) as heat_index, category_name(a.category) as category,
    p.temperature as temperature_before, p.humidity as humidity_before, p.wind_speed as wind_speed_before,
    p.revision as revision_before, fahrenheit(a.heat_index_before_e6) as heat_index_before,
    category_name(a.category_before) as category_before
from arrival a join city c on c.city_id = a.city_id left join lateral (
    select e.temperature, e.humidity, e.wind_speed, e.revision
    from arrival e
    where e.city_id = a.city_id and e.reading_at = a.reading_at and (e.as_of, e.seq) < (a.as_of, a.seq)
        and e.outcome in (1, 2, 3, 8, 9)
    order by e.as_of desc, e.seq desc
    limit 1
) p on true;
comment on view arrival_rows is
    'Every arrival with names instead of codes, values in °F, and the measurement that its city and time had before.';
comment on column arrival_rows.city is 'city.name.';
comment on column arrival_rows.reading_at is 'When the reading was taken.';
comment on column arrival_rows.as_of is 'arrival.as_of: when the arrival became part of this database.';
comment on column arrival_rows.seq is 'The order of arrivals with the same city and as_of, from 0.';
comment on column arrival_rows.source is 'The log that it came in.';
comment on column arrival_rows.partition is 'The partition of the log.';
comment on column arrival_rows.position is 'The position in the partition.';
comment on column arrival_rows.arrived_at is 'When the log appended it; null if the log does not say.';
comment on column arrival_rows.outcome is 'outcome.name: what the arrival did.';
comment on column arrival_rows.temperature is '°F that it sent; null for a withdrawal.';
comment on column arrival_rows.humidity is 'Relative humidity that it sent, 0 to 105 %; null for a withdrawal.';
comment on column arrival_rows.wind_speed is 'mph that it sent; null if not measured.';
comment on column arrival_rows.revision is 'The revision that it sent; null if none.';
comment on column arrival_rows.heat_index is 'Heat index of its city and time after the arrival, °F; null if there is no reading.';
comment on column arrival_rows.category is 'Danger category after the arrival; null if there is no reading.';
comment on column arrival_rows.temperature_before is '°F of the reading before the arrival; null if there was none.';
comment on column arrival_rows.humidity_before is 'Relative humidity of the reading before, %; null if there was none.';
comment on column arrival_rows.wind_speed_before is 'mph of the reading before; null if there was none.';
comment on column arrival_rows.revision_before is 'The revision of the arrival that had set or removed the reading before.';
comment on column arrival_rows.heat_index_before is 'Heat index before the arrival, °F; null if there was no reading.';
comment on column arrival_rows.category_before is 'Danger category before the arrival; null if there was no reading.';

create view bi_now as
select c.name as city, p.name as place, p.country, p.latitude, p.longitude, n.reading_at, n.temperature, n.humidity,
    n.wind_speed, fahrenheit(n.heat_index_e6) as heat_index, mean_fahrenheit(n.sum_e6, n.count) as rolling_heat_index,
    n.count, category_name(n.category) as category, epoch_time(n.as_of) as changed_at
from now n join city c on c.city_id = n.city_id left join place p on p.city = c.name
where n.reading_at is not null;
comment on view bi_now is 'The newest row of every city, with its place if the table place has it.';
comment on column bi_now.city is 'city.name.';
comment on column bi_now.place is 'The name to show, of the table place.';
comment on column bi_now.country is 'ISO 3166-1 alpha-2 code, of the table place.';
comment on column bi_now.latitude is 'Degrees north, of the table place.';
comment on column bi_now.longitude is 'Degrees east, of the table place.';
comment on column bi_now.reading_at is 'When the newest reading was taken.';
comment on column bi_now.temperature is '°F; null if not known any more.';
comment on column bi_now.humidity is 'Relative humidity as measured, 0 to 105 %; null if not known any more.';
comment on column bi_now.wind_speed is 'mph; null if not measured.';
comment on column bi_now.heat_index is 'Heat index of the newest reading, °F.';
comment on column bi_now.rolling_heat_index is 'Mean of the heat indexes of the window that ends with it, °F.';
comment on column bi_now.count is 'Number of readings in that window.';
comment on column bi_now.category is 'Danger category of the newest reading.';
comment on column bi_now.changed_at is 'When the row changed last, by the ingest clock.';

create view bi_daily as
select c.name as city, p.name as place, p.country, d.day, d.zone, d.starts, d.ends, d.readings,
    mean_fahrenheit(d.sum_e6, d.readings) as mean_heat_index, fahrenheit(d.max_e6) as max_heat_index, d.max_at,
    d.c0 as below_caution, d.c1 as caution, d.c2 as extreme_caution, d.c3 as danger, d.c4 as extreme_danger, d.final
from day d join city c on c.city_id = d.city_id left join place p on p.city = c.name;
comment on view bi_daily is
    'One row a city and day: of UTC (zone = ''UTC''), and local days beside them. Choose one zone a city before days are added up.';
comment on column bi_daily.city is 'city.name.';
comment on column bi_daily.place is 'The name to show, of the table place.';
comment on column bi_daily.country is 'ISO 3166-1 alpha-2 code, of the table place.';
comment on column bi_daily.day is 'The date.';
comment on column bi_daily.zone is 'UTC, or the IANA time zone of the city.';
comment on column bi_daily.starts is 'The first instant of the date.';
comment on column bi_daily.ends is 'The first instant of the next date.';
comment on column bi_daily.readings is 'Number of readings in the day.';
comment on column bi_daily.mean_heat_index is 'Mean of their heat indexes, °F.';
comment on column bi_daily.max_heat_index is 'The highest heat index, °F.';
comment on column bi_daily.max_at is 'The first reading with the highest heat index.';
comment on column bi_daily.below_caution is 'Readings below 80 °F.';
comment on column bi_daily.caution is 'Readings of category caution.';
comment on column bi_daily.extreme_caution is 'Readings of category extreme_caution.';
comment on column bi_daily.danger is 'Readings of category danger.';
comment on column bi_daily.extreme_danger is 'Readings of category extreme_danger.';
comment on column bi_daily.final is 'No later reading can change the day.';

create view bi_hot_hours as
select c.name as city, p.name as place, p.country, h.hour_at, h.readings,
    mean_fahrenheit(h.sum_e6, h.readings) as mean_heat_index, fahrenheit(h.max_e6) as max_heat_index, h.max_at,
    h.c3 as danger, h.c4 as extreme_danger, h.final
from hour h join city c on c.city_id = h.city_id left join place p on p.city = c.name
where h.c3 + h.c4 > 0;
comment on view bi_hot_hours is 'One row a city and UTC hour with a reading of category danger or above, which is 103 °F or more.';
comment on column bi_hot_hours.city is 'city.name.';
comment on column bi_hot_hours.place is 'The name to show, of the table place.';
comment on column bi_hot_hours.country is 'ISO 3166-1 alpha-2 code, of the table place.';
comment on column bi_hot_hours.hour_at is 'The beginning of the hour.';
comment on column bi_hot_hours.readings is 'Number of readings in the hour.';
comment on column bi_hot_hours.mean_heat_index is 'Mean of their heat indexes, °F.';
comment on column bi_hot_hours.max_heat_index is 'The highest heat index, °F.';
comment on column bi_hot_hours.max_at is 'The first reading with the highest heat index.';
comment on column bi_hot_hours.danger is 'Readings of category danger.';
comment on column bi_hot_hours.extreme_danger is 'Readings of category extreme_danger.';
comment on column bi_hot_hours.final is 'No later reading can change the hour.';
