//! Usage lines and prices at the door. Amounts travel as exact integers in decimal text, prices as
//! decimal dollars; nothing is ever a float.

use std::collections::BTreeSet;

use tessera_model::{
    Amount, MicroUsd, PartMillis, Refusal, UnixMillis,
    refusal::nearest,
    usage::{Price, PriceVersion, UsageKey, UsageLine},
};

use crate::{
    door::{Checked, count, label, line, quote},
    v1,
};

const PRICES_MAX: usize = 256;
const MODEL_CHARS_MAX: usize = 128;
const NOTE_CHARS_MAX: usize = 1_024;
/// A million dollars an hour: far above any GPU, and low enough that 7,000 parts times any number of
/// milliseconds times a price fits an [`Amount`] with room for every sum.
const PRICE_MAX: MicroUsd = MicroUsd(1_000_000_000_000);

/// With the two derived columns, rounded once, here.
pub fn line_to_wire(line: &UsageLine) -> v1::UsageLine {
    v1::UsageLine {
        keys: line.keys.clone(),
        gpu_part_ms: line.held.0.to_string(),
        amount: line.amount.0.to_string(),
        gpu_hours: line.held.hours12(),
        amount_usd: line.amount.usd12(),
        unpriced_gpu_part_ms: line.unpriced.0.to_string(),
    }
}

/// The derived columns are not read: they follow from the exact ones.
pub fn line_from_wire(wire: v1::UsageLine) -> Result<UsageLine, Refusal> {
    Ok(UsageLine {
        held: PartMillis(exact("gpu_part_ms", &wire.gpu_part_ms)?),
        amount: Amount(exact("amount", &wire.amount)?),
        unpriced: PartMillis(exact("unpriced_gpu_part_ms", &wire.unpriced_gpu_part_ms)?),
        keys: wire.keys,
    })
}

/// A whole number as we write it: `parse` alone would also take "+5" and "-0".
fn exact<T: std::str::FromStr + ToString>(field: &'static str, text: &str) -> Checked<T> {
    text.parse::<T>().ok().filter(|n| n.to_string() == text).ok_or_else(|| {
        let message = format!("{field} {} is no whole number", quote(text));
        Refusal::invalid(field, message, "use client and scheduler of one release")
    })
}

pub fn keys_to_wire(keys: &[UsageKey]) -> Vec<String> {
    keys.iter().map(|k| k.word().to_owned()).collect()
}

/// None at all asks for the total.
pub fn keys_from_wire(words: &[String]) -> Result<Vec<UsageKey>, Refusal> {
    let mut keys = Vec::new();
    for word in words {
        let Some(key) = UsageKey::parse(word) else {
            let known = UsageKey::ALL.map(UsageKey::word);
            let hint = match nearest(word, known) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("use any of {}", known.join(", ")),
            };
            let message = format!("usage cannot be grouped by {}", quote(word));
            return Err(Refusal::invalid("by", message, hint));
        };
        if keys.contains(&key) {
            let message = format!("usage is grouped by {} twice", key.word());
            return Err(Refusal::invalid("by", message, "name each key once"));
        }
        keys.push(key);
    }
    Ok(keys)
}

pub fn prices_to_wire(prices: &[Price]) -> Vec<v1::Price> {
    let price = |p: &Price| v1::Price {
        gpu_model: p.gpu_model.clone(),
        usd_per_gpu_hour: p.per_gpu_hour.to_string(),
    };
    prices.iter().map(price).collect()
}

/// At least one, each for another GPU model.
pub fn prices_from_wire(wire: Vec<v1::Price>) -> Result<Vec<Price>, Refusal> {
    if wire.is_empty() {
        let message = "there is no price in it";
        return Err(Refusal::invalid("prices", message, "name a GPU model and its price"));
    }
    count("prices", wire.len(), PRICES_MAX, "use a shorter part of the models' names")?;
    let prices = wire.into_iter().map(price_from_wire).collect::<Checked<Vec<_>>>()?;
    let mut seen = BTreeSet::new();
    for price in &prices {
        if !seen.insert(price.gpu_model.to_lowercase()) {
            let message = format!("{} has two prices", quote(&price.gpu_model));
            let hint = "the first would hide the second: keep one of them";
            return Err(Refusal::invalid("prices", message, hint));
        }
    }
    Ok(prices)
}

fn price_from_wire(wire: v1::Price) -> Checked<Price> {
    label("gpu_model", &wire.gpu_model, MODEL_CHARS_MAX)?;
    let text = &wire.usd_per_gpu_hour;
    let refuse = |message: String| {
        let hint = "write dollars per GPU-hour like 2.95, with at most six decimals";
        Err(Refusal::invalid("usd_per_gpu_hour", message, hint))
    };
    match MicroUsd::parse_price(text) {
        None => refuse(format!("the price {} of {} is no price", quote(text), wire.gpu_model)),
        Some(price) if price > PRICE_MAX => {
            refuse(format!("the price {text} of {} is above {PRICE_MAX}", wire.gpu_model))
        }
        Some(per_gpu_hour) => Ok(Price { gpu_model: wire.gpu_model, per_gpu_hour }),
    }
}

/// What a `SetPricesRequest` may say beside its prices.
pub fn note_from_wire(note: String) -> Result<String, Refusal> {
    line("note", &note, NOTE_CHARS_MAX)?;
    Ok(note)
}

pub fn price_version_to_wire(version: &PriceVersion) -> v1::PriceVersion {
    v1::PriceVersion {
        version: version.version,
        effective_from_unix_ms: version.effective_from.0,
        prices: prices_to_wire(&version.prices),
        note: version.note.clone(),
    }
}

pub fn price_version_from_wire(wire: v1::PriceVersion) -> Result<PriceVersion, Refusal> {
    if wire.version == 0 {
        let message = "price versions are numbered from 1, this one is 0";
        return Err(Refusal::invalid(
            "version",
            message,
            "use client and scheduler of one release",
        ));
    }
    Ok(PriceVersion {
        version: wire.version,
        effective_from: UnixMillis(wire.effective_from_unix_ms),
        prices: prices_from_wire(wire.prices)?,
        note: note_from_wire(wire.note)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(gpu_model: &str, usd: &str) -> v1::Price {
        v1::Price { gpu_model: gpu_model.to_owned(), usd_per_gpu_hour: usd.to_owned() }
    }

    #[test]
    fn amounts_stay_exact() {
        let hour = PartMillis::whole(3_600_000);
        let amounts = [Amount(0), Amount(-7), Amount(i128::MAX), Amount::of(hour, PRICE_MAX)];
        for amount in amounts {
            let keys = vec!["nlp".to_owned(), String::new()];
            let line =
                UsageLine { keys, held: PartMillis::whole(u64::MAX), amount, unpriced: hour };
            assert_eq!(line_from_wire(line_to_wire(&line)), Ok(line));
        }
        for bad in ["", "1.0", "+1", "-0", "007", "1e9", " 1", &"9".repeat(60)] {
            let zero = || "0".to_owned();
            let wire = v1::UsageLine {
                amount: bad.to_owned(),
                gpu_part_ms: zero(),
                unpriced_gpu_part_ms: zero(),
                ..Default::default()
            };
            assert_eq!(line_from_wire(wire).unwrap_err().field, "amount", "{bad:?}");
        }
        let line = UsageLine {
            keys: vec![],
            held: hour,
            amount: Amount::of(hour, MicroUsd(2_950_000)),
            unpriced: PartMillis(0),
        };
        let wire = line_to_wire(&line);
        assert_eq!((&*wire.gpu_hours, &*wire.amount_usd), ("1.000000000000", "2.950000000000"));
    }

    #[test]
    fn the_dearest_gpu_held_for_ever_does_not_overflow() {
        let most = Amount::of(PartMillis::whole(u64::MAX), PRICE_MAX);
        assert!(most.0 < i128::MAX / 1_000);
    }

    #[test]
    fn a_price_version_survives_the_round_trip() {
        let version = PriceVersion {
            version: 3,
            effective_from: UnixMillis(1_790_000_000_000),
            prices: prices_from_wire(vec![price("H100", "2.95"), price("A100", "0.000001")])
                .unwrap(),
            note: "as agreed".to_owned(),
        };
        assert_eq!(version.prices[1].per_gpu_hour, MicroUsd(1));
        assert_eq!(price_version_from_wire(price_version_to_wire(&version)), Ok(version));
    }

    #[test]
    fn a_price_list_that_could_mislead_is_refused() {
        let cases = [
            ("prices", vec![]),
            ("prices", vec![price("H100", "1"), price("h100", "2")]),
            ("prices", (0..257).map(|i| price(&format!("g{i}"), "1")).collect()),
            ("gpu_model", vec![price(" ", "1")]),
            ("usd_per_gpu_hour", vec![price("h100", "-1")]),
            ("usd_per_gpu_hour", vec![price("h100", "2,95")]),
            ("usd_per_gpu_hour", vec![price("h100", "0.0000001")]),
            ("usd_per_gpu_hour", vec![price("h100", "1000000.000001")]),
        ];
        for (field, prices) in cases {
            let refusal = prices_from_wire(prices).expect_err(field);
            assert_eq!(refusal.field, field, "{refusal:?}");
        }
    }

    #[test]
    fn keys_keep_their_order_and_a_slip_is_helped() {
        let words = keys_to_wire(&UsageKey::ALL);
        assert_eq!(keys_from_wire(&words), Ok(UsageKey::ALL.to_vec()));
        assert_eq!(keys_from_wire(&[]), Ok(vec![]));
        let words = |w: &[&str]| w.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let slip = keys_from_wire(&words(&["team", "gpumodel"])).unwrap_err();
        assert_eq!(slip.hint, "did you mean gpu_model?");
        let twice = keys_from_wire(&words(&["team", "day", "team"])).unwrap_err();
        assert!(twice.message.contains("team twice"));
    }
}
