//! Stretched rotary frequencies: `rope_scaling` and `rope_parameters` of published files, and
//! `positions.rotary.scaling`.
//!
//! Files have the one, the other or both, by the version of transformers that wrote them; weights
//! do not show which was meant, so both must say the same.

use serde_json::{Map, Value, json};

/// The object that transformers writes since version 5, and the one before.
const KEYS: [&str; 2] = ["rope_parameters", "rope_scaling"];
const TYPE: &str = "rope_type";
/// The key of the oldest files.
const OLD_TYPE: &str = "type";
const PLAIN: &str = "default";
/// Stands beside the scaling in the newer object; another row reads it.
const THETA: &str = "rope_theta";

/// A number of a scaling: theirs, ours, and whether it must be there.
type Number = (&'static str, &'static str, bool);

const WINDOW: Number = ("original_max_position_embeddings", "original_max_positions", true);
const LLAMA3: &[Number] = &[
    ("factor", "factor", true),
    ("low_freq_factor", "low_freq_factor", true),
    ("high_freq_factor", "high_freq_factor", true),
    WINDOW,
];
const YARN: &[Number] = &[
    ("factor", "factor", true),
    WINDOW,
    ("beta_fast", "beta_fast", false),
    ("beta_slow", "beta_slow", false),
    ("mscale", "mscale", false),
    ("mscale_all_dim", "mscale_all_dim", false),
    ("attention_factor", "attention_factor", false),
    ("truncate", "truncate", false),
];
/// Types of both sides, and their numbers.
const SCALINGS: [(&str, &[Number]); 2] = [("llama3", LLAMA3), ("yarn", YARN)];
/// Numbers that are as good as absent where they are 0: files are read by Python, in which 0 is no.
const ZERO_IS_NONE: [&str; 4] = ["beta_fast", "beta_slow", "mscale", "mscale_all_dim"];

/// The scaling of a published file, as `positions.rotary.scaling` has it; `None` where frequencies
/// are plain.
///
/// # Errors
/// A kind, a key or a lack of one that Muster has nothing for; two objects that differ.
pub(crate) fn read(theirs: &Value) -> Result<Option<Value>, String> {
    let mut found: Option<(&str, Option<Value>)> = None;
    for key in KEYS {
        let Some(object) = get(theirs, key) else { continue };
        let scaling = read_object(key, object)?;
        match &found {
            // An object of the base alone says nothing of scaling.
            Some((_, None)) | None => found = Some((key, scaling)),
            Some((other, before)) if scaling.is_some() && *before != scaling => {
                return Err(format!(
                    "`{key}` and `{other}` stretch rotary frequencies in different ways"
                ));
            }
            Some(_) => {}
        }
    }
    Ok(found.and_then(|(_, scaling)| scaling))
}

/// The value of a key, unless it is null.
fn get<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|found| !found.is_null())
}

fn read_object(key: &str, object: &Value) -> Result<Option<Value>, String> {
    let map = object.as_object();
    let map = map.ok_or_else(|| format!("`{key}` is {object}, no object"))?;
    let kind = [TYPE, OLD_TYPE].into_iter().find_map(|name| Some((name, get(object, name)?)));
    let (name, kind) = kind.map_or((TYPE, Value::from(PLAIN)), |(name, kind)| (name, kind.clone()));
    let numbers = match SCALINGS.iter().find(|(known, _)| kind == *known) {
        Some((_, numbers)) => *numbers,
        None if kind == PLAIN => &[],
        None => {
            return Err(format!(
                "`{key}.{name}` is {kind}; Muster has {PLAIN}, {} and {}",
                SCALINGS[0].0, SCALINGS[1].0
            ));
        }
    };
    let is_known = |key: &str| {
        [TYPE, OLD_TYPE, THETA].contains(&key) || numbers.iter().any(|(theirs, ..)| *theirs == key)
    };
    if let Some((strange, value)) = map.iter().find(|(key, _)| !is_known(key)) {
        return Err(format!("`{key}.{strange}` is {value}, which Muster does not have"));
    }
    let mut ours = Map::new();
    for (theirs, name, needed) in numbers {
        let is_zero = |value: &&Value| value.as_f64() == Some(0.0);
        let is_none = |value: &&Value| ZERO_IS_NONE.contains(theirs) && is_zero(value);
        match get(object, theirs).filter(|value| !is_none(value)) {
            Some(value) => drop(ours.insert((*name).to_owned(), value.clone())),
            None if *needed => return Err(format!("`{key}.{theirs}` is missing")),
            None => {}
        }
    }
    let kind = kind.as_str().unwrap_or(PLAIN);
    Ok((kind != PLAIN).then(|| json!({kind: ours})))
}

/// Both objects of a model's file; the older one only where frequencies are stretched.
pub(crate) fn write(scaling: Option<&Value>, theirs: &mut Map<String, Value>) {
    let of = |(kind, numbers): &(&str, &[Number])| {
        let ours = scaling?.get(kind)?;
        let mut object = Map::from_iter([(TYPE.to_owned(), Value::from(*kind))]);
        let given = numbers.iter().filter_map(|(theirs, name, _)| Some((theirs, get(ours, name)?)));
        object.extend(given.map(|(theirs, value)| ((*theirs).to_owned(), value.clone())));
        Some(object)
    };
    let object = SCALINGS.iter().find_map(of);
    if let Some(object) = &object {
        theirs.insert(KEYS[1].to_owned(), Value::Object(object.clone()));
    }
    let object = object.unwrap_or_else(|| Map::from_iter([(TYPE.to_owned(), PLAIN.into())]));
    // Beside the base, which another row writes.
    match theirs.get_mut(KEYS[0]).and_then(Value::as_object_mut) {
        Some(there) => there.extend(object),
        None => drop(theirs.insert(KEYS[0].to_owned(), Value::Object(object))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(theirs: Value) -> String {
        read(&theirs).unwrap_err()
    }

    #[test]
    fn published_objects_are_read_and_written() {
        let llama = json!({"rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        }});
        let ours = json!({"llama3": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_positions": 8192
        }});
        assert_eq!(read(&llama).unwrap(), Some(ours.clone()));
        let deepseek = json!({"rope_scaling": {
            "type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
            "mscale_all_dim": 0, "original_max_position_embeddings": 4096
        }});
        let yarn = json!({"yarn": {
            "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
            "original_max_positions": 4096
        }});
        assert_eq!(read(&deepseek).unwrap(), Some(yarn.clone()));
        for ours in [Some(ours), Some(yarn), None] {
            let mut theirs = json!({"rope_parameters": {"rope_theta": 1e4}});
            write(ours.as_ref(), theirs.as_object_mut().unwrap());
            assert_eq!(theirs["rope_parameters"]["rope_theta"], 1e4);
            assert_eq!(theirs.get("rope_scaling").is_some(), ours.is_some());
            assert_eq!(read(&theirs).unwrap(), ours);
        }
    }

    #[test]
    fn plain_frequencies_have_no_scaling() {
        for theirs in [
            json!({}),
            json!({"rope_scaling": null, "rope_parameters": {"rope_theta": 1e4}}),
            json!({"rope_scaling": {"type": "default"}}),
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ] {
            assert_eq!(read(&theirs).unwrap(), None, "{theirs}");
        }
    }

    #[test]
    fn whatever_muster_lacks_is_named() {
        assert_eq!(
            told(json!({"rope_scaling": {"type": "linear", "factor": 2}})),
            "`rope_scaling.type` is \"linear\"; Muster has default, llama3 and yarn"
        );
        assert_eq!(
            told(json!({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}})),
            "`rope_parameters.factor` is missing"
        );
        assert_eq!(
            told(json!({"rope_parameters": {"rope_theta": 1e4, "factor": 4}})),
            "`rope_parameters.factor` is 4, which Muster does not have"
        );
        assert_eq!(told(json!({"rope_scaling": 4})), "`rope_scaling` is 4, no object");
        let yarn = |factor: f64| {
            let window = 64;
            json!({
                "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": window
            })
        };
        assert_eq!(
            told(json!({"rope_scaling": yarn(2.0), "rope_parameters": yarn(4.0)})),
            "`rope_scaling` and `rope_parameters` stretch rotary frequencies in different ways"
        );
    }
}
