//! What a new dev cluster begins with: a team, and prices that are examples and say so.

use tessera_proto::v1;

use crate::call::Api;
use crate::commands::{prices, team};
use crate::failure::Outcome;
use crate::when;

/// USD per GPU-hour by part of the model's name; the first match counts, so longer names come first.
const EXAMPLE_PRICES: [(&str, &str); 10] = [
    ("gb200", "6.50"),
    ("b200", "5.50"),
    ("h200", "3.70"),
    ("h100", "2.95"),
    ("a100", "1.80"),
    ("l40s", "1.20"),
    ("a10", "0.75"),
    ("l4", "0.60"),
    ("v100", "0.80"),
    ("t4", "0.40"),
];

pub async fn teams(api: &Api, wanted: &[(&str, &str)]) -> Outcome {
    let there = team::list(api).await?;
    for (name, description) in wanted {
        if !there.iter().any(|t| t.team == *name) {
            team::create(api, name, description).await?;
        }
    }
    Ok(())
}

/// Publishes the examples, from the beginning of this month on, if nobody has published any.
pub async fn prices(api: &Api) -> Outcome {
    if !prices::list(api).await?.is_empty() {
        return Ok(());
    }
    let now = when::now();
    let month = when::parse("month", now).unwrap_or(now);
    let price = |(model, usd): (&str, &str)| v1::Price {
        gpu_model: model.to_owned(),
        usd_per_gpu_hour: usd.to_owned(),
    };
    let request = v1::SetPricesRequest {
        effective_from_unix_ms: month.0,
        prices: EXAMPLE_PRICES.map(price).to_vec(),
        note: "examples of tessera dev, no offer".to_owned(),
    };
    prices::set(api, request).await.map(|_| ())
}
