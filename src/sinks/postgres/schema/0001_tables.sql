-- Tables. No statement names a schema: the transaction that applies the file sets search_path.
--
-- Heat indexes are whole numbers of 1e-6 °F, so that sums are exact. They need a bigint, since the
-- plain Rothfusz polynomial reaches 3,595 °F.

create table setting (
    name text primary key,
    value text not null
);
comment on table setting is 'Settings that the results are made with. They never change while the schema exists.';
comment on column setting.name is 'window_ms, lateness_ms and history_ms (milliseconds), formula.';
comment on column setting.value is 'The value as text.';

create table category (
    code smallint primary key,
    name text not null unique,
    from_e6 bigint
);
comment on table category is 'Danger categories of a heat index, by the thresholds of the US National Weather Service.';
comment on column category.code is 'The number in other tables; a higher one is more dangerous.';
comment on column category.name is 'The name in results.';
comment on column category.from_e6 is 'The lowest heat index of the category, 1e-6 °F; null for the mildest.';
insert into category values
    (0, 'none', null), (1, 'caution', 80000000), (2, 'extreme_caution', 90000000), (3, 'danger', 103000000),
    (4, 'extreme_danger', 125000000);

create table outcome (
    code smallint primary key,
    name text not null unique,
    has_effect boolean not null,
    meaning text not null
);
comment on table outcome is 'The outcomes of arrivals.';
comment on column outcome.code is 'The number in arrival.outcome.';
comment on column outcome.name is 'The name in arrival_rows.';
comment on column outcome.has_effect is 'Whether such an arrival sets or removes the reading of its key.';
comment on column outcome.meaning is 'What an arrival with this outcome did.';
insert into outcome values
    (1, 'inserted', true, 'The first reading of its city and time.'),
    (2, 'corrected', true, 'Replaced the reading of its city and time.'),
    (3, 'withdrawn', true, 'A withdrawal: removed the reading of its city and time.'),
    (4, 'nothing_to_withdraw', false, 'A withdrawal of a city and time without a reading.'),
    (5, 'old_revision', false, 'Lost: its revision is lower than that of an earlier arrival of its city and time.'),
    (6, 'superseded', false, 'A retried dead letter: its city and time had a reading or a withdrawal by then.'),
    (7, 'too_late', false, 'Older than the newest reading of its city less the lateness. Only of cities seen in two partitions.'),
    (8, 'held', true, 'Held in memory when this database began: its measurement and its sender are not known.'),
    (9, 'retried', true, 'A retried dead letter that became the first reading of its city and time.');

create table city (
    city_id bigint primary key,
    name text not null unique,
    shard int not null,
    exact boolean not null default true,
    zone text,
    begins timestamptz
);
comment on table city is 'Every city that had an arrival. A row comes with the first one.';
comment on column city.city_id is 'The first 63 bits of the SHA-256 of the name: the same in every database.';
comment on column city.name is 'The key of the city in readings, as it was sent.';
comment on column city.shard is 'The shard that writes the city: see the table shard.';
comment on column city.exact is
    'False if readings of the city came in two partitions: their order, and so the result, may differ after a restart.';
comment on column city.zone is 'The IANA time zone of local days, as at the first reading; null if unknown.';
comment on column city.begins is
    'All readings from here on are in this database; null if that is so from the beginning of the log. Rolling means begin a window later.';

create table place (
    city text primary key,
    name text not null,
    country text,
    latitude double precision,
    longitude double precision,
    population bigint
);
comment on table place is
    'Names and places of cities for reports. swelter never writes it: fill it with \copy place from cities.csv csv header.';
comment on column place.city is 'city.name.';
comment on column place.name is 'The name to show.';
comment on column place.country is 'ISO 3166-1 alpha-2 code, such as US.';
comment on column place.latitude is 'Degrees north.';
comment on column place.longitude is 'Degrees east.';
comment on column place.population is 'Inhabitants.';

create table shard (
    shard int primary key,
    generation bigint not null,
    nonce text not null,
    epoch bigint,
    progress jsonb,
    identity jsonb,
    kept_from date
) with (fillfactor = 50);
comment on table shard is
    'How far each part of the output is written. A row changes in the same transaction as the results that it speaks of.';
comment on column shard.shard is 'The number of the shard within the sink.';
comment on column shard.generation is 'The number of the start that may write.';
comment on column shard.nonce is 'Tells starts with the same number apart.';
comment on column shard.epoch is
    'The newest epoch that is written completely: milliseconds since 1970 of the ingest clock. Null before the first.';
comment on column shard.progress is 'The epoch and the log positions that the results are complete up to.';
comment on column shard.identity is 'The settings and logs that the results are made with.';
comment on column shard.kept_from is
    'The oldest UTC day that is kept; older readings and arrivals are dropped. It never falls. Null: all are kept.';

create table reading (
    city_id bigint not null,
    reading_at timestamptz not null,
    temperature double precision,
    humidity double precision,
    wind_speed double precision,
    heat_index_e6 bigint not null,
    category smallint not null,
    revision bigint,
    -- A city's readings are scattered over its partitions' pages, in the order in which they came. With
    -- these columns the function rolling reads the index alone, in which they lie side by side.
    primary key (city_id, reading_at) include (heat_index_e6, category)
) partition by range (reading_at);
comment on table reading is
    'One row a city and time: the reading that counts now, after all corrections and withdrawals. Partitions by UTC day, reading_YYYYMMDD.';
comment on column reading.city_id is 'city.city_id.';
comment on column reading.reading_at is 'When the reading was taken, to the millisecond.';
comment on column reading.temperature is '°F. Null if it was held in memory when this database began.';
comment on column reading.humidity is 'Relative humidity as measured, 0 to 105 %. Null as temperature.';
comment on column reading.wind_speed is 'mph; null if not measured.';
comment on column reading.heat_index_e6 is 'Heat index, 1e-6 °F.';
comment on column reading.category is 'category.code of the heat index.';
comment on column reading.revision is 'The revision that the sender gave it; null if none.';

create table arrival (
    as_of bigint not null,
    city_id bigint not null,
    seq int not null,
    reading_at timestamptz not null,
    source text not null,
    partition int not null,
    position bigint not null,
    arrived_at timestamptz,
    temperature double precision,
    humidity double precision,
    wind_speed double precision,
    revision bigint,
    outcome smallint not null,
    heat_index_e6 bigint,
    category smallint,
    heat_index_before_e6 bigint,
    category_before smallint
) partition by range (reading_at);
create index arrival_as_of on arrival using brin (as_of) with (autosummarize = on);
create index arrival_key on arrival (city_id, reading_at);
comment on table arrival is
    'Every admitted reading and withdrawal, also those that changed nothing. Rows are only added. Partitions by UTC day of reading_at, arrival_YYYYMMDD.';
comment on column arrival.as_of is
    'The epoch at which the arrival became part of this database: milliseconds since 1970 of the ingest clock. It never falls along the arrivals of a city.';
comment on column arrival.city_id is 'city.city_id.';
comment on column arrival.seq is 'The order of arrivals with the same city and as_of, from 0.';
comment on column arrival.reading_at is 'When the reading was taken, to the millisecond.';
comment on column arrival.source is 'The log that it came in: a topic, the journal or a file.';
comment on column arrival.partition is 'The partition of the log.';
comment on column arrival.position is 'The position in the partition, such as the offset in a topic.';
comment on column arrival.arrived_at is 'When the log appended it, by the clock of the log; null if the log does not say.';
comment on column arrival.temperature is '°F; null for a withdrawal.';
comment on column arrival.humidity is 'Relative humidity as measured, 0 to 105 %; null for a withdrawal.';
comment on column arrival.wind_speed is 'mph; null if not measured.';
comment on column arrival.revision is 'The revision that the sender gave it; null if none.';
comment on column arrival.outcome is 'outcome.code: what the arrival did.';
comment on column arrival.heat_index_e6 is
    'Heat index of its city and time after the arrival, 1e-6 °F: not of the arrival itself, if it lost. Null if there is no reading.';
comment on column arrival.category is 'category.code after the arrival; null if there is no reading.';
comment on column arrival.heat_index_before_e6 is
    'Heat index of its city and time before the arrival, 1e-6 °F; null if there was no reading.';
comment on column arrival.category_before is 'category.code before the arrival; null if there was no reading.';

create table now (
    city_id bigint primary key,
    high timestamptz not null,
    as_of bigint not null,
    reading_at timestamptz,
    temperature double precision,
    humidity double precision,
    wind_speed double precision,
    heat_index_e6 bigint,
    sum_e6 bigint,
    count int,
    category smallint
) with (fillfactor = 50);
comment on table now is
    'The newest row of every city. The columns from reading_at on are null while the city has no row that can still change.';
comment on column now.city_id is 'city.city_id.';
comment on column now.high is
    'The newest reading_at that was ever admitted, even if withdrawn since: lateness counts from it. It never falls.';
comment on column now.as_of is 'The epoch of the last change of this row: milliseconds since 1970 of the ingest clock.';
comment on column now.reading_at is 'When the newest reading was taken.';
comment on column now.temperature is '°F; null if not known any more.';
comment on column now.humidity is 'Relative humidity as measured, 0 to 105 %; null if not known any more.';
comment on column now.wind_speed is 'mph; null if not measured.';
comment on column now.heat_index_e6 is 'Heat index of the newest reading, 1e-6 °F.';
comment on column now.sum_e6 is 'Sum of the heat indexes of the window that ends with the newest reading, 1e-6 °F.';
comment on column now.count is 'Number of readings in that window.';
comment on column now.category is 'category.code of the newest reading.';

create table hour (
    city_id bigint not null,
    hour_at timestamptz not null,
    readings int not null,
    sum_e6 bigint not null,
    max_e6 bigint not null,
    max_at timestamptz not null,
    c0 int not null,
    c1 int not null,
    c2 int not null,
    c3 int not null,
    c4 int not null,
    final boolean not null,
    primary key (city_id, hour_at)
) with (fillfactor = 70);
create index hour_hot on hour (hour_at) where c3 + c4 > 0;
comment on table hour is 'One row a city and UTC hour with readings.';
comment on column hour.city_id is 'city.city_id.';
comment on column hour.hour_at is 'The beginning of the hour.';
comment on column hour.readings is 'Number of readings in the hour.';
comment on column hour.sum_e6 is 'Sum of their heat indexes, 1e-6 °F.';
comment on column hour.max_e6 is 'The highest heat index, 1e-6 °F.';
comment on column hour.max_at is 'The first reading with the highest heat index.';
comment on column hour.c0 is 'Readings below 80 °F.';
comment on column hour.c1 is 'Readings of category caution.';
comment on column hour.c2 is 'Readings of category extreme_caution.';
comment on column hour.c3 is 'Readings of category danger.';
comment on column hour.c4 is 'Readings of category extreme_danger.';
comment on column hour.final is 'No later reading can change the hour: the lateness has passed it.';

create table day (
    city_id bigint not null,
    day date not null,
    zone text not null,
    starts timestamptz not null,
    ends timestamptz not null,
    readings int not null,
    sum_e6 bigint not null,
    max_e6 bigint not null,
    max_at timestamptz not null,
    c0 int not null,
    c1 int not null,
    c2 int not null,
    c3 int not null,
    c4 int not null,
    final boolean not null,
    primary key (city_id, zone, day)
) with (fillfactor = 70);
comment on table day is
    'One row a city and day with readings: days of UTC, and local days beside them if the zone of the city is known.';
comment on column day.city_id is 'city.city_id.';
comment on column day.day is 'The date.';
comment on column day.zone is 'UTC, or the IANA time zone of the city.';
comment on column day.starts is 'The first instant of the date.';
comment on column day.ends is 'The first instant of the next date: a local day may have 23 or 25 hours.';
comment on column day.readings is 'Number of readings in the day.';
comment on column day.sum_e6 is 'Sum of their heat indexes, 1e-6 °F.';
comment on column day.max_e6 is 'The highest heat index, 1e-6 °F.';
comment on column day.max_at is 'The first reading with the highest heat index.';
comment on column day.c0 is 'Readings below 80 °F.';
comment on column day.c1 is 'Readings of category caution.';
comment on column day.c2 is 'Readings of category extreme_caution.';
comment on column day.c3 is 'Readings of category danger.';
comment on column day.c4 is 'Readings of category extreme_danger.';
comment on column day.final is 'No later reading can change the day: the lateness has passed it.';

create table rolling_row (
    city_id bigint not null,
    reading_at timestamptz not null,
    heat_index_e6 bigint not null,
    sum_e6 bigint not null,
    count int not null,
    category smallint not null,
    as_of bigint not null,
    primary key (city_id, reading_at)
) partition by range (reading_at);
comment on table rolling_row is
    'Every result row as it was sent, if the sink writes it: a correction changes all rows of its window. Partitions by UTC day, rolling_row_YYYYMMDD.';
comment on column rolling_row.city_id is 'city.city_id.';
comment on column rolling_row.reading_at is 'When the reading was taken.';
comment on column rolling_row.heat_index_e6 is 'Heat index of the reading, 1e-6 °F.';
comment on column rolling_row.sum_e6 is 'Sum of the heat indexes of the window that ends with the reading, 1e-6 °F.';
comment on column rolling_row.count is 'Number of readings in that window.';
comment on column rolling_row.category is 'category.code of the reading.';
comment on column rolling_row.as_of is 'The epoch of the last change of the row: milliseconds since 1970 of the ingest clock.';

create table dead_letter (
    source text not null,
    partition int not null,
    position bigint not null,
    as_of bigint not null,
    arrived_at timestamptz,
    reason text not null,
    detail text not null,
    attempt int not null default 0,
    origin text,
    first_seen_at timestamptz,
    key bytea,
    value bytea,
    primary key (source, partition, position)
);
comment on table dead_letter is 'Every record that was refused, byte for byte.';
comment on column dead_letter.source is 'The log that it came in: a topic, the journal or a file.';
comment on column dead_letter.partition is 'The partition of the log.';
comment on column dead_letter.position is 'The position in the partition.';
comment on column dead_letter.as_of is 'The epoch at which it was refused: milliseconds since 1970 of the ingest clock.';
comment on column dead_letter.arrived_at is 'When the log appended it, by the clock of the log; null if the log does not say.';
comment on column dead_letter.reason is 'The code of the reason, such as too_late.';
comment on column dead_letter.detail is 'What is wrong with it.';
comment on column dead_letter.attempt is 'How often it had been retried before; 0 for the first time.';
comment on column dead_letter.origin is 'Of a retried record: the log, partition and position where it came first.';
comment on column dead_letter.first_seen_at is 'Of a retried record: when a log first had it.';
comment on column dead_letter.key is 'The key of the record; null if it had none.';
comment on column dead_letter.value is 'The record; null for a tombstone.';
