//! JSON that is nearly valid, and its frames.

use crate::support::Random;

const VALID_READING: &str =
    r#"{"city":"@","reading_at":"2025-11-24T16:0#:00Z","temperature":8#.5,"humidity":5#,"wind_speed":3}"#;

const ODD_READINGS: [&str; 16] = [
    r#"{}"#,
    r#"null"#,
    r#"[[]]"#,
    r#""x""#,
    r#"{"city":"@"}"#,
    r#"{"city":"@","reading_at":"2025-11-24T16:00:00Z","deleted":true}"#,
    r#"{"city":"@","reading_at":"2025-11-24T16:00:00Z","temperature":1e999,"humidity":5}"#,
    r#"{"city":"@","reading_at":"2025-11-24T16:00:00Z","temperature":-131,"humidity":5}"#,
    r#"{"city":"@","reading_at":"0000-00-00T99:99:99Z","temperature":80,"humidity":5}"#,
    r#"{"city":"@","reading_at":"9999-12-31T23:59:59.999999999+23:59","temperature":80,"humidity":5}"#,
    r#"{"city":"@","reading_at":"2025-11-24T16:00:00Z","temperature":80,"humidity":50,"revision":-9223372036854775808}"#,
    r#"{"city":"@","reading_at":"2025-11-24T16:00:00Z","temperature":80,"humidity":50,"revision":18446744073709551615}"#,
    r#"{"city":"","reading_at":"2025-11-24T16:00:00Z","temperature":80,"humidity":50}"#,
    r#"{"city":"\ud800","reading_at":"2025-11-24T16:00:00Z","temperature":80,"humidity":50}"#,
    r#"{"city":"@","city":"@","reading_at":"2025-11-24T16:00:00Z","temperature":80,"humidity":50}"#,
    r#"{"city":"@","reading_at":"2025-11-24T16:00:00Z","dew_point":300,"temperature":80}"#,
];

/// Few cities, so that their memory stays small.
fn random_reading(random: &mut Random) -> Vec<u8> {
    let template = random.pick_mostly(&[VALID_READING], 25, &ODD_READINGS);
    let city = format!("fuzz-{}", random.index(30));
    let digit = random.index(10).to_string();
    let mut text = template.replace('@', &city).replace('#', &digit).into_bytes();
    if random.percent(8) {
        random.mutate(&mut text);
    }
    text
}

/// A body or message of some readings.
pub fn random_readings(random: &mut Random, lines: bool) -> Vec<u8> {
    let count = if random.percent(2) { random.index(400) } else { random.within(1..5) };
    let records: Vec<Vec<u8>> = (0..count).map(|_| random_reading(random)).collect();
    if lines {
        return records.join(&b'\n');
    }
    if records.len() == 1 {
        return records.concat();
    }
    [b"[".to_vec(), records.join(&b','), b"]".to_vec()].concat()
}

const SUBSCRIPTION_IDS: [&str; 7] = [r#""a""#, r#""b""#, r#""""#, "null", "7", r#"["a"]"#, r#""\u0000""#];
const CITY_SELECTIONS: [&str; 11] = [
    r#""cities":"all""#,
    r#""cities":["fuzz-1","fuzz-2"]"#,
    r#""cities":["fuzz-3","fuzz-3",""]"#,
    r#""cities":[]"#,
    r#""cities":[1,null]"#,
    r#""cities":"none""#,
    r#""box":[-180,-90,180,90]"#,
    r#""box":[170,10,-170,-10]"#,
    r#""box":[1e308,-1e308,0,0]"#,
    r#""box":[0,0,0]"#,
    r#""cities":"all","box":[0,0,1,1]"#,
];
const ROWS_VALUES: [&str; 6] =
    ["", r#","rows":"latest""#, r#","rows":"window""#, r#","rows":7"#, r#","rows":null"#, r#","rows":"w""#];

/// Which cities a subscriber names.
fn random_selection(random: &mut Random) -> String {
    match random.index(10) {
        0 => {
            let mut side = |span: usize| random.index(span * 20) as f64 / 10.0 - span as f64;
            let (west, south, east, north) = (side(190), side(95), side(190), side(95));
            format!(r#""box":[{west},{south},{east},{north}]"#)
        }
        1 => {
            let count = random.index(120);
            let keys: Vec<_> = (0..count).map(|_| format!("\"fuzz-{}\"", random.index(200))).collect();
            format!(r#""cities":[{}]"#, keys.join(","))
        }
        _ => random.pick_mostly(&CITY_SELECTIONS[..2], 30, &CITY_SELECTIONS).to_string(),
    }
}

/// A message of a subscriber. `token` is from the service.
fn random_subscriber_message(random: &mut Random, token: &str) -> Vec<u8> {
    let id = random.pick_mostly(&SUBSCRIPTION_IDS[..2], 10, &SUBSCRIPTION_IDS);
    let mut text = match random.index(12) {
        0 | 1 => r#"{"type":"ping"}"#.to_string(),
        2 | 3 => format!(r#"{{"type":"unsubscribe","id":{id}}}"#),
        4 => random
            .pick(&["{}", "[]", "null", "{\"type\":7}", "{\"type\":\"hello\"}", "", "\u{feff}{}"])
            .into(),
        _ => {
            let cities = random_selection(random);
            let rows = random.pick_mostly(&ROWS_VALUES[..3], 10, &ROWS_VALUES);
            let mut token = token.as_bytes().to_vec();
            if random.percent(60) {
                random.mutate(&mut token);
            }
            let token = String::from_utf8_lossy(&token).replace(['"', '\\', '\n', '\r', '\0'], "x");
            let odd = [r#","resume":7"#, r#","resume":"""#, r#","resume":"a.b.c""#];
            let given = format!(r#","resume":"{token}""#);
            let resume = if random.percent(30) { random.pick_mostly(&[&given], 20, &odd) } else { "" };
            format!(r#"{{"type":"subscribe","id":{id},{cities}{rows}{resume}}}"#)
        }
    }
    .into_bytes();
    if random.percent(6) {
        random.mutate(&mut text);
    }
    if random.percent(1) {
        text = b"[".repeat(random.index(3_000));
    }
    text
}

/// Appends one message, in one frame or in several, or a control frame.
pub fn push_message(random: &mut Random, ingest: bool, token: &str, out: &mut Vec<u8>) {
    match random.index(24) {
        0 => push_control(random, out),
        1 => {
            let payload = random.random_bytes(200);
            let first = random.next() as u8;
            push_frame(random, first, &payload, out);
        }
        _ => {
            let text = if ingest {
                random_readings(random, false)
            } else {
                random_subscriber_message(random, token)
            };
            push_text(random, &text, out);
        }
    }
}

fn push_text(random: &mut Random, text: &[u8], out: &mut Vec<u8>) {
    if random.percent(85) {
        return push_frame(random, 0x81, text, out);
    }
    let at = random.index(text.len() + 1);
    push_frame(random, 0x01, &text[..at], out);
    if random.percent(20) {
        push_frame(random, 0x89, b"between", out);
    }
    let last = *random.pick(&[&[0x80_u8], &[0x80], &[0x80], &[0x00], &[0x81]]).first().unwrap_or(&0x80);
    push_frame(random, last, &text[at..], out);
}

fn push_control(random: &mut Random, out: &mut Vec<u8>) {
    let most = if random.percent(10) { 200 } else { 125 };
    let mut payload = random.random_bytes(most);
    let opcode = *random.pick(&[&[0x89_u8], &[0x8a], &[0x88], &[0x09], &[0x8b]]).first().unwrap_or(&0x89);
    if opcode == 0x88 {
        let codes: [u16; 9] = [1000, 1001, 1005, 1006, 1011, 1015, 0, 4999, 65535];
        let code = codes[random.index(codes.len())];
        payload.splice(0..payload.len().min(2), code.to_be_bytes());
        payload.truncate(random.index(4) * 40);
    }
    push_frame(random, opcode, &payload, out);
}

/// A frame whose length or mask is now and then not what it should be.
pub fn push_frame(random: &mut Random, first: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(first);
    let masked = !random.percent(1);
    let bit = if masked { 0x80 } else { 0 };
    let length = match random.index(400) {
        0 => random.next(),
        1 => payload.len() as u64 + 1,
        2 => 0,
        _ => payload.len() as u64,
    };
    match (length, random.index(100)) {
        (0..126, 1..) => out.push(bit | length as u8),
        (0..65_536, 1..) => {
            out.push(bit | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        // In more bytes than it needs, too.
        _ => {
            out.push(bit | 127);
            out.extend_from_slice(&length.to_be_bytes());
        }
    }
    let mask = (random.next() as u32).to_be_bytes();
    if masked {
        out.extend_from_slice(&mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        out.extend_from_slice(payload);
    }
}
