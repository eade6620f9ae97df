//! Points in time as people type them.
//!
//! In: `today`, `7d`, `2026-11-01`, RFC 3339, and the present. Out: an instant. All in UTC, since
//! that is how days are billed.

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
    fn a_clock_shows_the_date_only_on_another_day() {
        let now = UnixMillis::parse_date("2026-11-24").unwrap();
        assert_eq!(clock(now.plus(Millis(50_700_000)), now), "14:05 UTC");
        assert_eq!(clock(now.plus(Millis::DAY), now), "2026-11-25 00:00 UTC");
        assert_eq!(between(now, now.plus(Millis(8_040_500))), "2h14m");
        assert_eq!(between(now, now.plus(Millis(850))), "0s");
    }
}
