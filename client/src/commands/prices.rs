//! `tessera prices`: what a GPU-hour costs, by version.
//!
//! In: flags or a TOML file with exact decimals. Out: the versions there are, or a new one. A
//! version is never changed; a later one takes over.

use std::path::Path;

use serde::Serialize;
use tessera_model::{MicroUsd, UnixMillis};
use tessera_proto::v1;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::call::Api;
use crate::cli::{PricesArgs, PricesSetArgs, PricesVerb};
use crate::failure::{Failure, Outcome};
use crate::output::{Grid, Screen, left, right};
use crate::when;

#[derive(Serialize)]
struct VersionView<'a> {
    version: u32,
    effective_from: String,
    note: &'a str,
    prices: Vec<PriceView<'a>>,
}

#[derive(Serialize)]
struct PriceView<'a> {
    gpu_model: &'a str,
    usd_per_gpu_hour: &'a str,
}

impl<'a> VersionView<'a> {
    fn of(version: &'a v1::PriceVersion) -> Self {
        let price = |p: &'a v1::Price| PriceView {
            gpu_model: &p.gpu_model,
            usd_per_gpu_hour: &p.usd_per_gpu_hour,
        };
        Self {
            version: version.version,
            effective_from: UnixMillis(version.effective_from_unix_ms).rfc3339(),
            note: &version.note,
            prices: version.prices.iter().map(price).collect(),
        }
    }
}

pub async fn run(api: &Api, args: &PricesArgs, screen: &Screen) -> Outcome<u8> {
    match &args.verb {
        None | Some(PricesVerb::List) => {
            let versions = list(api).await?;
            if screen.json {
                screen.json(&versions.iter().map(VersionView::of).collect::<Vec<_>>())?;
            } else {
                screen.text(&table(&versions, screen))?;
                if versions.is_empty() {
                    screen.hint("publish prices with `tessera prices set --gpu h100=2.95`");
                }
            }
        }
        Some(PricesVerb::Set(args)) => {
            let version = set(api, request(args, when::now())?).await?;
            if screen.json {
                screen.json(&VersionView::of(&version))?;
            } else {
                let from = UnixMillis(version.effective_from_unix_ms);
                screen.line(format!("prices version {} hold from {from}", version.version))?;
            }
        }
    }
    Ok(0)
}

pub async fn list(api: &Api) -> Outcome<Vec<v1::PriceVersion>> {
    let reply =
        api.ask(|api| async move { api.usage().get_prices(v1::GetPricesRequest {}).await }).await?;
    Ok(reply.versions)
}

/// Asked once: a second try would make a second version.
pub async fn set(api: &Api, request: v1::SetPricesRequest) -> Outcome<v1::PriceVersion> {
    api.once(api.usage().set_prices(request)).await
}

fn table(versions: &[v1::PriceVersion], screen: &Screen) -> String {
    let mut grid = Grid::with_remark(vec![
        right("VERSION"),
        left("FROM"),
        left("GPU MODEL"),
        right("USD/GPU-HOUR"),
        left("NOTE"),
    ]);
    for version in versions {
        for (i, price) in version.prices.iter().enumerate() {
            let first = i == 0;
            let from = UnixMillis(version.effective_from_unix_ms).rfc3339();
            grid.row([
                // In a pipe each line stands for itself.
                if first || !screen.tty { version.version.to_string() } else { String::new() },
                if first || !screen.tty { from } else { String::new() },
                price.gpu_model.clone(),
                price.usd_per_gpu_hour.clone(),
                if first || !screen.tty { version.note.clone() } else { String::new() },
            ]);
        }
    }
    grid.render(screen)
}

fn request(args: &PricesSetArgs, now: UnixMillis) -> Outcome<v1::SetPricesRequest> {
    if let Some(path) = &args.file {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::file("read the prices", path, &error))?;
        return parse_file(&text, path, now);
    }
    let from = args.from.as_deref().map(|t| when::parse_flag("--from", t, now)).transpose()?;
    let prices = args.gpu.iter().map(|(model, usd)| {
        let usd =
            price(usd).map_err(|why| Failure::usage(format!("--gpu {model}={usd}: {why}"), ""))?;
        Ok(v1::Price { gpu_model: model.clone(), usd_per_gpu_hour: usd })
    });
    Ok(v1::SetPricesRequest {
        effective_from_unix_ms: from.map_or(0, |f| f.0),
        prices: prices.collect::<Outcome<_>>()?,
        note: args.note.clone().unwrap_or_default(),
    })
}

fn price(text: &str) -> Result<String, String> {
    MicroUsd::parse_price(text).map(|p| p.to_string()).ok_or_else(|| {
        format!("{text:?} is no price; write dollars with at most six decimals, 2.95")
    })
}

/// `from`, `note` and `[[prices]]` with `gpu_model` and `usd_per_gpu_hour`. A price may stand with
/// or without quotes: its digits are read, never a float.
pub fn parse_file(text: &str, path: &Path, now: UnixMillis) -> Outcome<v1::SetPricesRequest> {
    let fail = |at: usize, what: String, hint: &str| {
        let line = text[..at.min(text.len())].matches('\n').count() + 1;
        Failure::usage(format!("{}:{line}: {what}", path.display()), hint)
    };
    let shape = "a price is [[prices]] with gpu_model = \"h100\" and usd_per_gpu_hour = \"2.95\"";
    let table = DeTable::parse(text).map_err(|error| {
        fail(error.span().map_or(0, |s| s.start), error.message().to_owned(), shape)
    })?;
    let text_of = |value: &Spanned<DeValue<'_>>, key: &str| -> Outcome<String> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            DeValue::Float(number) if key == "usd_per_gpu_hour" => Ok(number.as_str().to_owned()),
            DeValue::Integer(number) if key == "usd_per_gpu_hour" => Ok(number.as_str().to_owned()),
            other => {
                let what = format!("`{key}` must be a text, not {}", other.type_str());
                Err(fail(value.span().start, what, shape))
            }
        }
    };
    let mut request = v1::SetPricesRequest::default();
    for (key, value) in table.get_ref() {
        match key.get_ref().as_ref() {
            "from" => {
                let word = text_of(value, "from")?;
                let at = when::parse_flag("from", &word, now)
                    .map_err(|f| fail(value.span().start, f.message, &f.hint))?;
                request.effective_from_unix_ms = at.0;
            }
            "note" => request.note = text_of(value, "note")?,
            "prices" => {
                let wrong =
                    || fail(value.span().start, "`prices` must be a list".to_owned(), shape);
                for item in value.get_ref().as_array().ok_or_else(wrong)?.iter() {
                    let (mut model, mut usd) = (None, None);
                    for (key, value) in item.get_ref().as_table().ok_or_else(wrong)? {
                        match key.get_ref().as_ref() {
                            "gpu_model" => model = Some(text_of(value, "gpu_model")?),
                            "usd_per_gpu_hour" => {
                                let text = text_of(value, "usd_per_gpu_hour")?;
                                let exact = price(&text);
                                usd = Some(exact.map_err(|why| fail(value.span().start, why, ""))?);
                            }
                            other => {
                                let what = format!("unknown key `{other}`");
                                return Err(fail(key.span().start, what, shape));
                            }
                        }
                    }
                    let (Some(gpu_model), Some(usd_per_gpu_hour)) = (model, usd) else {
                        return Err(fail(
                            item.span().start,
                            "a price is incomplete".to_owned(),
                            shape,
                        ));
                    };
                    request.prices.push(v1::Price { gpu_model, usd_per_gpu_hour });
                }
            }
            other => {
                let what = format!("unknown key `{other}`");
                return Err(fail(key.span().start, what, "known keys are from, note, prices"));
            }
        }
    }
    if request.prices.is_empty() {
        return Err(fail(0, "there is no price in it".to_owned(), shape));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_file_is_read_digit_by_digit_and_in_order() {
        let text = "from = \"2026-12-01\"\nnote = \"winter\"\n[[prices]]\ngpu_model = \"h200\"\n\
                    usd_per_gpu_hour = 4.1\n[[prices]]\ngpu_model = \"h\"\nusd_per_gpu_hour = \"2.950001\"\n";
        let request = parse_file(text, Path::new("p.toml"), UnixMillis(0)).unwrap();
        assert_eq!(request.effective_from_unix_ms, UnixMillis::parse_date("2026-12-01").unwrap().0);
        let prices: Vec<_> = request
            .prices
            .iter()
            .map(|p| (p.gpu_model.as_str(), p.usd_per_gpu_hour.as_str()))
            .collect();
        assert_eq!(prices, [("h200", "4.10"), ("h", "2.950001")]);
    }

    #[test]
    fn a_wrong_price_file_is_told_where() {
        let cases = [
            ("", "p.toml:1: there is no price in it"),
            ("nota = \"x\"", "p.toml:1: unknown key `nota`"),
            ("note = 1", "`note` must be a text, not integer"),
            ("\nfrom = \"soon\"", "p.toml:2: from \"soon\" is no point in time"),
            ("prices = 1", "`prices` must be a list"),
            ("[[prices]]\ngpu_model = \"a\"", "p.toml:1: a price is incomplete"),
            (
                "[[prices]]\ngpu_model = \"a\"\nusd_per_gpu_hour = 2.1234567",
                "p.toml:3: \"2.1234567\" is no price",
            ),
            ("[[prices]]\ngpu_model = \"a\"\nusd_per_gpu_hour = -1", "is no price"),
            ("[[prices]]\nmodel = \"a\"", "p.toml:2: unknown key `model`"),
            ("x = [", "p.toml:1"),
        ];
        for (text, want) in cases {
            let got = parse_file(text, Path::new("p.toml"), UnixMillis(0)).unwrap_err().message;
            assert!(got.contains(want), "{text:?}: {got}");
        }
    }
}
