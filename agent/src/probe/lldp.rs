//! Which switches the node's links end at, as `lldpd` has heard it.
//!
//! In: what `lldpctl -f json` or `-f json0` printed, kept in a file by the operator. Out: the names
//! of the neighbours. A neighbour that says no name is called by the id of its chassis.

use std::collections::BTreeSet;

use serde_json::Value;

/// The neighbours' names, each once, in order; or why the text is none of lldpctl's.
pub fn neighbours(text: &str) -> Result<Vec<String>, String> {
    let all: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let lldp = all.get("lldp").ok_or("it has no \"lldp\" in it")?;
    let mut names = BTreeSet::new();
    find(lldp, &mut names);
    Ok(names.into_iter().collect())
}

/// Every `chassis`, however deep: the formats differ in what they wrap into lists.
fn find(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| find(item, names)),
        Value::Object(fields) => {
            for (field, inside) in fields {
                match (field.as_str(), inside) {
                    // `json0` has lists, `json` an object.
                    ("chassis", Value::Array(items)) => {
                        names.extend(items.iter().filter_map(chassis));
                    }
                    ("chassis", one) => names.extend(chassis(one)),
                    _ => find(inside, names),
                }
            }
        }
        _ => {}
    }
}

fn chassis(value: &Value) -> Option<String> {
    let fields = value.as_object()?;
    if let Some(named) = fields.get("name").or_else(|| fields.get("id")).and_then(word) {
        return Some(named);
    }
    // `json` writes a chassis that has a name as `{"leaf-3": {...}}`.
    let (name, _) = fields.iter().find(|(_, inside)| inside.get("id").is_some())?;
    Some(name.clone())
}

/// `"x"`, `{"value": "x"}` or a list of such.
fn word(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => return items.first().and_then(word),
        other => other.get("value")?.as_str()?.to_owned(),
    };
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_name_the_same_switches() {
        let json0 = r#"{"lldp":[{"interface":[
            {"name":"eth0","chassis":[{"id":[{"type":"mac","value":"00:11"}],
                "name":[{"value":"leaf-3"}],"mgmt-ip":[{"value":"10.0.0.3"}]}]},
            {"name":"eth1","chassis":[{"id":[{"type":"mac","value":"00:22"}]}]},
            {"name":"eth2","chassis":[{"name":[{"value":"leaf-3"}]}]}]}]}"#;
        let json = r#"{"lldp":{"interface":[
            {"eth0":{"via":"LLDP","chassis":{"leaf-3":{"id":{"type":"mac","value":"00:11"}}}}},
            {"eth1":{"chassis":{"id":{"type":"mac","value":"00:22"}}}}]}}"#;
        let one = r#"{"lldp":{"interface":{"eth0":{"chassis":
            {"leaf-3":{"id":{"type":"mac","value":"00:11"}}}}}}}"#;
        assert_eq!(neighbours(json0).unwrap(), ["00:22", "leaf-3"]);
        assert_eq!(neighbours(json).unwrap(), ["00:22", "leaf-3"]);
        assert_eq!(neighbours(one).unwrap(), ["leaf-3"]);
        assert_eq!(neighbours(r#"{"lldp":{}}"#).unwrap(), [""; 0]);
        for (text, want) in [("", "EOF"), ("[]", "no \"lldp\""), ("{\"lldp\":", "EOF")] {
            assert!(neighbours(text).unwrap_err().contains(want), "{text}");
        }
    }
}
