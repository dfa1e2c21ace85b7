//! When the averages began that an update keeps of a parameter: those of Adam start at zero, and
//! are corrected for it by how many updates they have seen, which need not be all of the run's.
//!
//! ```text
//! run state, `begun`: { parameter: updates that had been made then }    none: with the run
//! a checkpoint without them (of another optimizer)                      they begin now
//! an imported one with them                                             long ago
//! ```

use checkpoint::RunState;
use layout::state::PARAM;
use layout::{Schema, Sharing, StateDecl};
use serde_json::{Map, Value};

/// Averages over so many updates need no correction.
const LONG_AGO: i64 = -(1 << 40);

/// Of each parameter, the number of updates that had been made when its averages began; a run goes
/// on after `updates`, with what a checkpoint of this state holds, but for the states that it
/// `lacks`.
pub(crate) fn begun(
    schema: &Schema,
    states: &[StateDecl],
    (state, updates): (&RunState, u64),
    lacks: impl Fn(&StateDecl) -> bool,
) -> Vec<i64> {
    let recorded = state.extra.get("begun");
    let of_import = if state.extra.get("imported_from").is_some() { LONG_AGO } else { 0 };
    let mut begun: Vec<i64> = schema
        .tensors
        .iter()
        .map(|tensor| recorded.and_then(|all| all.get(&tensor.name)?.as_i64()).unwrap_or(of_import))
        .collect();
    for state in states.iter().filter(|state| state.slot != PARAM && lacks(state)) {
        if let Sharing::Owned { tensor } = state.sharing {
            begun[tensor] = i64::try_from(updates).unwrap_or(i64::MAX);
        }
    }
    begun
}

/// The entry of the run state; none where all began with the run.
pub(crate) fn entry(schema: &Schema, begun: &[i64]) -> Option<Value> {
    let later = schema.tensors.iter().zip(begun).filter(|(_, begun)| **begun != 0);
    let map: Map<String, Value> =
        later.map(|(tensor, &begun)| (tensor.name.clone(), begun.into())).collect();
    (!map.is_empty()).then_some(Value::Object(map))
}

#[cfg(test)]
mod tests {
    use super::*;
    use layout::{LogicalTensor, Role};

    fn schema() -> Schema {
        let tensor = |name: &str| LogicalTensor::new(name, &[2, 2], Role::Matrix);
        Schema { tensors: vec![tensor("a"), tensor("b"), tensor("c")] }
    }

    fn states() -> Vec<StateDecl> {
        let of = |tensor: usize, name: &str, slot| {
            StateDecl::f32(name, slot, &[2, 2], Sharing::Owned { tensor })
        };
        ["a", "b", "c"]
            .iter()
            .enumerate()
            .flat_map(|(tensor, name)| [of(tensor, name, PARAM), of(tensor, name, "adam_m")])
            .collect()
    }

    fn at(extra: Value) -> RunState {
        RunState { extra, ..RunState::default() }
    }

    #[test]
    fn averages_begin_with_the_run_when_they_are_lacking_or_long_ago() {
        let of = |extra: Value, lacking: &str| {
            begun(&schema(), &states(), (&at(extra), 70), |state| state.name == lacking)
        };
        assert_eq!(of(Value::Null, ""), [0, 0, 0]);
        assert_eq!(of(Value::Null, "b"), [0, 70, 0]);
        let recorded = serde_json::json!({ "begun": { "a": 5, "c": -9 } });
        assert_eq!(of(recorded, "a"), [70, 0, -9]);
        let imported = serde_json::json!({ "imported_from": "x" });
        assert_eq!(of(imported, "c"), [LONG_AGO, LONG_AGO, 70]);
    }

    #[test]
    fn what_is_recorded_comes_back() {
        assert_eq!(entry(&schema(), &[0, 0, 0]), None);
        let kept = [0, 70, LONG_AGO];
        let extra = serde_json::json!({ "begun": entry(&schema(), &kept) });
        assert_eq!(begun(&schema(), &states(), (&at(extra), 99), |_| false), kept);
    }
}
