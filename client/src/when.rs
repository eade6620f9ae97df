//! Points in time as people type them.
//!
//! In: `today`, `7d`, `2026-11-01`, RFC 3339, and the present. Out: an instant. All in UTC, since
//! that is how days are billed. A bare length of time lies behind us in a report ([`parse`]) and
//! before us in a plan ([`ahead`]).

use std::time::{SystemTime, UNIX_EPOCH};

use tessera_model::{Millis, UnixMillis};

use crate::failure::Failure;

pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Reads an instant: `now`, `today`, `yesterday`, `month` (its first day), a length of time ago
/// (`7d`, `12h`), a date, or RFC 3339 with any offset.
pub fn parse(text: &str, now: UnixMillis) -> Option<UnixMillis> {
    let day_ago = UnixMillis(now.0.saturating_sub(86_400_000));
    match text {
        "now" => return Some(now),
        "today" => return Some(now.day_start()),
        "yesterday" => return Some(day_ago.day_start()),
        "month" => return UnixMillis::parse_date(&format!("{}-01", &now.date()[..7])),
        _ => {}
    }
    if let Some(date) = UnixMillis::parse_date(text) {
        return Some(date);
    }
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return Some(UnixMillis(instant.as_millisecond()));
    }
    // A bare number is a job's minutes elsewhere; here it would be a guess.
    let is_length = text.ends_with(['s', 'm', 'h', 'd']) && !text.contains(['-', ':']);
    let ago = if is_length { Millis::parse(text)? } else { return None };
    i64::try_from(ago.0).ok().map(|ago| UnixMillis(now.0.saturating_sub(ago)))
}

/// The same, with an error that names the flag.
pub fn parse_flag(flag: &str, text: &str, now: UnixMillis) -> Result<UnixMillis, Failure> {
    parse(text, now).ok_or_else(|| {
        Failure::usage(
            format!("{flag} {text:?} is no point in time"),
            "write a date (2026-11-01), RFC 3339 (2026-11-01T08:00:00Z), a time ago (7d, 12h), \
             today, yesterday or month",
        )
    })
}

/// Reads an instant to come: `now`, `tomorrow`, a length of time from now (`2h`, `+2h`), the next
/// `14:05`, a date, `2026-12-01T08:00`, or RFC 3339 with any offset. All but the last in UTC.
pub fn ahead(text: &str, now: UnixMillis) -> Option<UnixMillis> {
    match text {
        "now" => return Some(now),
        "tomorrow" => return Some(now.day_start().plus(Millis::DAY)),
        _ => {}
    }
    if let Some(date) = UnixMillis::parse_date(text) {
        return Some(date);
    }
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return Some(UnixMillis(instant.as_millisecond()));
    }
    if let Some((date, clock)) = text.split_once('T') {
        let (date, clock) = (UnixMillis::parse_date(date)?, time_of_day(clock)?);
        return Some(date.plus(clock));
    }
    if let Some(clock) = time_of_day(text) {
        let today = now.day_start().plus(clock);
        return Some(if today >= now { today } else { today.plus(Millis::DAY) });
    }
    let length = text.strip_prefix('+').unwrap_or(text);
    let is_length = length.ends_with(['s', 'm', 'h', 'd']) && !length.contains(['-', ':']);
    let length = if is_length { Millis::parse(length)? } else { return None };
    i64::try_from(length.0).ok().map(|ahead| UnixMillis(now.0.saturating_add(ahead)))
}

/// The same, with an error that names the flag.
pub fn ahead_flag(flag: &str, text: &str, now: UnixMillis) -> Result<UnixMillis, Failure> {
    ahead(text, now).ok_or_else(|| {
        Failure::usage(
            format!("{flag} {text:?} is no point in time"),
            "write a time from now (2h), a time of day in UTC (14:05), a date (2026-12-01), \
             2026-12-01T08:00, RFC 3339, now or tomorrow",
        )
    })
}

/// `14:05` or `14:05:30`.
fn time_of_day(text: &str) -> Option<Millis> {
    let parts: Vec<&str> = text.split(':').collect();
    let number = |part: &&str, below: u64| {
        let is_two_digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        part.parse::<u64>().ok().filter(|n| is_two_digits && *n < below)
    };
    let seconds = match parts.as_slice() {
        [h, m] => number(h, 24)? * 3_600 + number(m, 60)? * 60,
        [h, m, s] => number(h, 24)? * 3_600 + number(m, 60)? * 60 + number(s, 60)?,
        _ => return None,
    };
    Some(Millis::from_secs(seconds))
}

/// How long ago or from now, for people: `4m`.
pub fn between(a: UnixMillis, b: UnixMillis) -> String {
    let ms = if a > b { a.since(b) } else { b.since(a) };
    // Below a minute people read seconds.
    Millis(ms.0 / 1_000 * 1_000).to_string()
}

/// Today as `14:05`, else with its date. UTC.
pub fn clock(at: UnixMillis, now: UnixMillis) -> String {
    let text = at.rfc3339();
    if at.date() == now.date() {
        format!("{} UTC", &text[11..16])
    } else {
        format!("{} {} UTC", at.date(), &text[11..16])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_as_people_type_them() {
        let now = UnixMillis::parse_date("2026-11-24").unwrap().plus(Millis(11 * 3_600_000));
        let cases = [
            ("now", Some("2026-11-24T11:00:00Z")),
            ("today", Some("2026-11-24T00:00:00Z")),
            ("yesterday", Some("2026-11-23T00:00:00Z")),
            ("month", Some("2026-11-01T00:00:00Z")),
            ("7d", Some("2026-11-17T11:00:00Z")),
            ("90m", Some("2026-11-24T09:30:00Z")),
            ("2026-10-05", Some("2026-10-05T00:00:00Z")),
            ("2026-10-05T06:07:08Z", Some("2026-10-05T06:07:08Z")),
            ("2026-10-05T06:07:08.250+02:00", Some("2026-10-05T04:07:08.250Z")),
            ("2026-02-30", None),
            ("7", None),
            ("5x", None),
            ("tomorrow", None),
            ("", None),
            ("-7d", None),
        ];
        for (text, want) in cases {
            let got = parse(text, now).map(|t| t.rfc3339());
            assert_eq!(got.as_deref(), want, "{text:?}");
        }
        assert!(parse_flag("--from", "tomorrow", now).unwrap_err().message.contains("--from"));
    }

    #[test]
    fn instants_to_come_are_read_as_people_type_them() {
        let now = UnixMillis::parse_date("2026-11-24").unwrap().plus(Millis(11 * 3_600_000));
        let cases = [
            ("now", Some("2026-11-24T11:00:00Z")),
            ("tomorrow", Some("2026-11-25T00:00:00Z")),
            ("2h", Some("2026-11-24T13:00:00Z")),
            ("+90m", Some("2026-11-24T12:30:00Z")),
            ("14:05", Some("2026-11-24T14:05:00Z")),
            ("09:00", Some("2026-11-25T09:00:00Z")),
            ("2026-12-01", Some("2026-12-01T00:00:00Z")),
            ("2026-12-01T08:00", Some("2026-12-01T08:00:00Z")),
            ("2026-12-01T08:00:30", Some("2026-12-01T08:00:30Z")),
            ("2026-12-01T08:00:00+02:00", Some("2026-12-01T06:00:00Z")),
            ("25:00", None),
            ("9:00", None),
            ("7", None),
            ("-2h", None),
            ("2026-13-01", None),
            ("2026-12-01T", None),
            ("99999999999999999999d", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(ahead(text, now).map(|t| t.rfc3339()).as_deref(), want, "{text:?}");
        }
        assert!(ahead_flag("--begin", "soon", now).unwrap_err().message.contains("--begin"));
    }

    #[test]
    fn a_clock_shows_the_date_only_on_another_day() {
        let now = UnixMillis::parse_date("2026-11-24").unwrap();
        assert_eq!(clock(now.plus(Millis(50_700_000)), now), "14:05 UTC");
        assert_eq!(clock(now.plus(Millis::DAY), now), "2026-11-25 00:00 UTC");
        assert_eq!(between(now, now.plus(Millis(8_040_500))), "2h14m");
        assert_eq!(between(now, now.plus(Millis(850))), "0s");
    }
}
