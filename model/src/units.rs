//! Units, and the only places where one becomes another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A length of time, milliseconds. A point in time is [`UnixMillis`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    pub const DAY: Self = Self(86_400_000);
    pub const HOUR: Self = Self(3_600_000);

    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000))
    }

    /// Reads `90s`, `15m`, `2h`, `3d`, `1h30m` or Slurm's `[D-]H:M:S`, `M:S`, bare minutes.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.contains(':') || text.contains('-') {
            return Self::parse_clock(text);
        }
        if let Ok(minutes) = text.parse::<u64>() {
            return minutes.checked_mul(60_000).map(Self);
        }
        let (mut total, mut digits) = (0u64, String::new());
        let mut seen = false;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            if c.is_ascii_digit() {
                digits.push(c);
                continue;
            }
            let unit = match c {
                'm' if chars.peek() == Some(&'s') => {
                    chars.next();
                    1
                }
                's' => 1_000,
                'm' => 60_000,
                'h' => 3_600_000,
                'd' => 86_400_000,
                _ => return None,
            };
            let count: u64 = digits.parse().ok()?;
            digits.clear();
            total = total.checked_add(count.checked_mul(unit)?)?;
            seen = true;
        }
        (seen && digits.is_empty()).then_some(Self(total))
    }

    fn parse_clock(text: &str) -> Option<Self> {
        let (days, clock) = match text.split_once('-') {
            Some((d, rest)) => (d.parse::<u64>().ok()?, rest),
            None => (0, text),
        };
        let parts: Vec<u64> =
            clock.split(':').map(|p| p.parse().ok()).collect::<Option<Vec<_>>>()?;
        let secs = match (text.contains('-'), parts.as_slice()) {
            (true, [h]) => h.checked_mul(3600)?,
            (true, [h, m]) => h.checked_mul(3600)?.checked_add(m.checked_mul(60)?)?,
            (false, [m, s]) => m.checked_mul(60)?.checked_add(*s)?,
            (_, [h, m, s]) => {
                h.checked_mul(3600)?.checked_add(m.checked_mul(60)?)?.checked_add(*s)?
            }
            _ => return None,
        };
        days.checked_mul(86_400)?.checked_add(secs)?.checked_mul(1_000).map(Self)
    }
}

impl fmt::Display for Millis {
    /// The two most significant units: `3d4h`, `2h14m`, `11m`, `42s`, `850ms`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0 / 1_000;
        let pair = |f: &mut fmt::Formatter<'_>, a: u64, ua: &str, b: u64, ub: &str| {
            if b == 0 { write!(f, "{a}{ua}") } else { write!(f, "{a}{ua}{b}{ub}") }
        };
        match s {
            0 if self.0 > 0 => write!(f, "{}ms", self.0),
            0..=59 => write!(f, "{s}s"),
            60..=3_599 => pair(f, s / 60, "m", s % 60, "s"),
            3_600..=86_399 => pair(f, s / 3_600, "h", s % 3_600 / 60, "m"),
            _ => pair(f, s / 86_400, "d", s % 86_400 / 3_600, "h"),
        }
    }
}

/// A point in time: milliseconds since 1970-01-01T00:00:00 UTC, a day being 86,400,000 of them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// Time from `earlier` to `self`; zero where the order is the other way round.
    pub fn since(self, earlier: Self) -> Millis {
        Millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    pub fn plus(self, length: Millis) -> Self {
        Self(self.0.saturating_add(i64::try_from(length.0).unwrap_or(i64::MAX)))
    }

    /// The first instant of the UTC day this instant lies in.
    pub fn day_start(self) -> Self {
        Self(self.0 - self.0.rem_euclid(86_400_000))
    }

    /// The UTC date, `2026-11-24`.
    pub fn date(self) -> String {
        let (y, m, d) = civil(self.0.div_euclid(86_400_000));
        format!("{y:04}-{m:02}-{d:02}")
    }

    /// RFC 3339 in UTC, `2026-11-24T11:00:00.123Z`; whole seconds print without a fraction.
    pub fn rfc3339(self) -> String {
        let ms = self.0.rem_euclid(86_400_000);
        let (h, m, s, frac) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000);
        let date = self.date();
        if frac == 0 {
            format!("{date}T{h:02}:{m:02}:{s:02}Z")
        } else {
            format!("{date}T{h:02}:{m:02}:{s:02}.{frac:03}Z")
        }
    }

    /// Midnight UTC of `2026-11-24`.
    pub fn parse_date(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (y, m, d) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || y.len() != 4 || m.len() != 2 || d.len() != 2 {
            return None;
        }
        let (y, m, d): (i64, i64, i64) = (y.parse().ok()?, m.parse().ok()?, d.parse().ok()?);
        let days = days_from_civil(y, m, d);
        (civil(days) == (y, m, d)).then_some(Self(days * 86_400_000))
    }
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

/// (year, month, day) of a day count since 1970-01-01, proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // Count years from March, so that the leap day is the last day of one.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let from_march = (month + 9) % 12;
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Parts a GPU is cut into for accounting: shares come in thousandths, MIG memory slices in 8ths,
/// compute slices in 7ths, and all of these are whole numbers of parts.
pub const PARTS_PER_GPU: u32 = 7_000;

/// GPU time held: parts × milliseconds. 7,000 × 3,600,000 of them make a GPU-hour.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PartMillis(pub u128);

/// A price: millionths of a US dollar per GPU-hour. Signed, since a credit and a charge are the
/// same kind of thing.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct MicroUsd(pub i64);

impl MicroUsd {
    /// Reads a decimal dollar price such as `2.95`; at most six decimals, never negative.
    pub fn parse_price(text: &str) -> Option<Self> {
        let (whole, frac) = text.split_once('.').unwrap_or((text, ""));
        let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || frac.len() > 6 || !digits(whole) || !digits(frac) {
            return None;
        }
        let micro = if frac.is_empty() { 0 } else { format!("{frac:0<6}").parse::<i64>().ok()? };
        whole.parse::<i64>().ok()?.checked_mul(1_000_000)?.checked_add(micro).map(Self)
    }
}

impl fmt::Display for MicroUsd {
    /// Dollars with as many decimals as needed, at least two: `2.95`, `0.000001`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let abs = self.0.unsigned_abs();
        let text = format!("{:06}", abs % 1_000_000);
        let frac = text.trim_end_matches('0');
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{}.{frac:0<2}", abs / 1_000_000)
    }
}

/// A charge before any division: parts × milliseconds × micro-dollars per GPU-hour. Sums of these
/// are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Amount(pub i128);

/// How many [`Amount`] units one US dollar is: 7,000 parts × 3,600,000 ms × 1,000,000
/// micro-dollars.
pub const AMOUNT_PER_USD: i128 = PARTS_PER_GPU as i128 * 3_600_000 * 1_000_000;

impl Amount {
    /// `held` at a price. A sum of part-milliseconds stays below 2^88 in any cluster, a price
    /// below 2^40.
    pub fn of(held: PartMillis, price: MicroUsd) -> Self {
        let held = i128::try_from(held.0).unwrap_or(i128::MAX);
        Self(held.saturating_mul(i128::from(price.0)))
    }

    /// Dollars with 12 decimals, half to even: the export form. This and [`cents`] are the two
    /// places where an amount is divided.
    pub fn usd12(self) -> String {
        decimal12(self.0, AMOUNT_PER_USD)
    }
}

impl std::ops::Add for Amount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl PartMillis {
    /// Whole GPUs held for so many milliseconds in all.
    pub const fn whole(gpu_ms: u64) -> Self {
        Self(gpu_ms as u128 * PARTS_PER_GPU as u128)
    }

    /// So many parts of one GPU for a time.
    pub fn of(parts: u32, length: Millis) -> Self {
        Self(u128::from(parts) * u128::from(length.0))
    }

    /// GPU-hours with 12 decimals, half to even.
    pub fn hours12(self) -> String {
        let value = i128::try_from(self.0).unwrap_or(i128::MAX);
        decimal12(value, i128::from(PARTS_PER_GPU) * 3_600_000)
    }

    /// GPU-milliseconds: a whole number, or with as many decimals as its shares need, at most six.
    pub fn gpu_ms(self) -> String {
        let parts = u128::from(PARTS_PER_GPU);
        let (whole, rest) = (self.0 / parts, self.0 % parts);
        if rest == 0 {
            return whole.to_string();
        }
        let decimals = format!("{:06}", rest * 1_000_000 / parts);
        format!("{whole}.{}", decimals.trim_end_matches('0'))
    }
}

impl std::ops::AddAssign for PartMillis {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl std::iter::Sum for PartMillis {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        Self(iter.map(|p| p.0).sum())
    }
}

/// `value / unit` with exactly 12 decimals, rounded half to even.
fn decimal12(value: i128, unit: i128) -> String {
    const SCALE: i128 = 1_000_000_000_000;
    let negative = value < 0;
    let value = value.unsigned_abs();
    let unit = unit.unsigned_abs();
    let (whole, rest) = (value / unit, value % unit);
    let scaled = rest * SCALE.unsigned_abs();
    let (mut frac, left) = (scaled / unit, scaled % unit);
    let mut whole = whole;
    if left * 2 > unit || (left * 2 == unit && frac % 2 == 1) {
        frac += 1;
        if frac == SCALE.unsigned_abs() {
            frac = 0;
            whole += 1;
        }
    }
    let sign = if negative && (whole, frac) != (0, 0) { "-" } else { "" };
    format!("{sign}{whole}.{frac:012}")
}

/// Cents for the lines of a document, by largest remainder, so that the lines sum to the rounded
/// total. Ties go to the earlier line.
pub fn cents(lines: &[Amount]) -> Vec<i128> {
    let values: Vec<i128> = lines.iter().map(|a| a.0).collect();
    apportion(&values, AMOUNT_PER_USD / 100)
}

/// Hundredths of GPU-hours for the lines of a document, in the same way.
pub fn hour_hundredths(lines: &[PartMillis]) -> Vec<i128> {
    let values = lines.iter().map(|h| i128::try_from(h.0).unwrap_or(i128::MAX));
    apportion(&values.collect::<Vec<_>>(), i128::from(PARTS_PER_GPU) * 36_000)
}

/// Each value in whole `unit`s, such that they sum to the total rounded half to even: every value
/// is rounded down, and the units still missing go to the largest remainders.
fn apportion(values: &[i128], unit: i128) -> Vec<i128> {
    let total: i128 = values.iter().sum();
    let (whole, rest) = (total.div_euclid(unit), total.rem_euclid(unit));
    let up = rest * 2 > unit || (rest * 2 == unit && whole.rem_euclid(2) == 1);
    let mut out: Vec<i128> = values.iter().map(|v| v.div_euclid(unit)).collect();
    let missing = whole + i128::from(up) - out.iter().sum::<i128>();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(values[i].rem_euclid(unit)), i));
    for &i in order.iter().take(usize::try_from(missing).unwrap_or(0)) {
        out[i] += 1;
    }
    out
}

/// `1234567` hundredths as `12345.67`.
pub fn cents_text(cents: i128) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    let abs = cents.unsigned_abs();
    format!("{sign}{}.{:02}", abs / 100, abs % 100)
}

/// A size in memory or on disk, bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// Reads `80GB`, `80G`, `512Mi`, `0`; a bare number is mebibytes, as in `sbatch --mem`.
    /// All units are binary.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let count: u64 = text[..split].parse().ok()?;
        let shift = match text[split..].trim_end_matches('b').trim_end_matches('i') {
            "k" => 10,
            "" if text.ends_with('b') => 0,
            "m" | "" => 20,
            "g" => 30,
            "t" => 40,
            _ => return None,
        };
        count.checked_mul(1 << shift).map(Self)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match steps.iter().find(|(shift, _)| self.0 >> shift > 0) {
            Some((shift, unit)) => {
                let tenths = (u128::from(self.0) * 10) >> shift;
                if tenths % 10 == 0 {
                    write!(f, "{} {unit}", tenths / 10)
                } else {
                    write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
                }
            }
            None => write!(f, "{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_as_people_write_them() {
        let cases = [
            ("90s", Some(90_000)),
            ("1h30m", Some(5_400_000)),
            ("3d", Some(259_200_000)),
            ("15", Some(900_000)),
            ("250ms", Some(250)),
            ("100:00:00", Some(360_000_000)),
            ("1-00:00:00", Some(86_400_000)),
            ("2-12", Some(216_000_000)),
            ("10:30", Some(630_000)),
            ("", None),
            ("h", None),
            ("5x", None),
            ("-5", None),
            ("99999999999999999999", None),
        ];
        for (text, want) in cases {
            assert_eq!(Millis::parse(text).map(|m| m.0), want, "{text:?}");
        }
    }

    #[test]
    fn dates_survive_the_round_trip_over_four_centuries() {
        let mut day = UnixMillis::parse_date("1900-01-01").unwrap();
        while day.date() != "2300-01-01" {
            assert_eq!(UnixMillis::parse_date(&day.date()), Some(day));
            day = day.plus(Millis::DAY);
        }
        assert_eq!(UnixMillis(1_790_000_000_123).rfc3339(), "2026-09-21T14:13:20.123Z");
        for bad in ["2026-02-30", "2026-13-01", "26-01-01", "2026-1-1", "x"] {
            assert_eq!(UnixMillis::parse_date(bad), None, "{bad}");
        }
    }

    #[test]
    fn prices_are_exact_decimals() {
        let cases = [
            ("2.95", Some(2_950_000)),
            ("0.000001", Some(1)),
            ("12", Some(12_000_000)),
            ("0.0000001", None),
            ("-1", None),
            ("1e3", None),
            ("", None),
            ("99999999999999999", None),
        ];
        for (text, want) in cases {
            assert_eq!(MicroUsd::parse_price(text).map(|p| p.0), want, "{text:?}");
        }
        assert_eq!(MicroUsd(2_950_000).to_string(), "2.95");
        assert_eq!(MicroUsd(1).to_string(), "0.000001");
    }

    #[test]
    fn twelve_decimals_round_half_to_even() {
        assert_eq!(PartMillis::whole(3_600_000).hours12(), "1.000000000000");
        assert_eq!(PartMillis::whole(1).hours12(), "0.000000277778");
        assert_eq!(
            Amount::of(PartMillis::whole(3_600_000), MicroUsd(2_950_000)).usd12(),
            "2.950000000000"
        );
        assert_eq!(PartMillis::of(1_750, Millis(3_600_000)).hours12(), "0.250000000000");
        assert_eq!(PartMillis::of(1, Millis(1)).gpu_ms(), "0.000142");
        assert_eq!(decimal12(5, 10_000_000_000_000), "0.000000000000");
        assert_eq!(decimal12(15, 10_000_000_000_000), "0.000000000002");
        assert_eq!(decimal12(-1, 2), "-0.500000000000");
    }

    #[test]
    fn lines_in_cents_sum_to_the_rounded_total() {
        let third = Amount(AMOUNT_PER_USD / 3);
        assert_eq!(cents(&[third, third, third]), [34, 33, 33]);
        assert_eq!(cents(&[]), Vec::<i128>::new());
        assert_eq!(cents_text(-105), "-1.05");
    }

    #[test]
    fn sizes_are_read_as_sbatch_reads_them() {
        let cases = [
            ("80GB", Some(80 << 30)),
            ("80g", Some(80 << 30)),
            ("512Mi", Some(512 << 20)),
            ("1024", Some(1024 << 20)),
            ("7b", Some(7)),
            ("0", Some(0)),
            ("G", None),
            ("-1", None),
            ("5x", None),
        ];
        for (text, want) in cases {
            assert_eq!(Bytes::parse(text).map(|b| b.0), want, "{text:?}");
        }
        assert_eq!(Bytes(1536 << 20).to_string(), "1.5 GiB");
    }
}
