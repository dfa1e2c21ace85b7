//! The offers instead of a refused mesh pass the whole check of a config.

use proptest::prelude::*;
use train::mesh_plan::Purpose;

use super::load::check_text;

const CONFIG: &str = "\
name: offers
model: {preset: tiny-moe, layers: 3, d_model: 64, heads: 4, head_dim: 16, kv_heads: 2, moe: \
                      {experts: 4, d_ff: 32}}
";

/// Any file that is there.
const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

fn config(ranks: usize, leaves: usize, mesh: &str) -> String {
    format!(
        "{CONFIG}data: {{tokenizer: byte, files: {TEXT:?}}}\nbatch: {{leaves: {leaves}}}\n\
         ranks: {{count: {ranks}, mesh: {mesh}}}\n"
    )
}

/// Ranks, and meshes of so many, that a message offers:
/// `…; with 4 ranks use pp 1, dp 4, …; or pp 2, …`.
fn offers(text: &str, ranks: usize) -> Vec<(usize, String)> {
    let other = text.split_once("; with ").and_then(|(_, rest)| rest.split(' ').next());
    let ranks = other.and_then(|digits| digits.parse().ok()).unwrap_or(ranks);
    let mut found = Vec::new();
    for part in text.split("pp ").skip(1) {
        let numbers = part.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
        let numbers: Vec<&str> = numbers.take(4).collect();
        let [pp, dp, ep, tp] = numbers[..] else { continue };
        found.push((ranks, format!("{{pp: {pp}, dp: {dp}, ep: {ep}, tp: {tp}}}")));
    }
    found
}

#[test]
fn a_mesh_that_does_not_fit_is_offered_others() {
    for purpose in [Purpose::Train, Purpose::Plan] {
        let problems = check_text(&config(8, 8, "{tp: 3}"), &[], purpose).err().unwrap();
        let mut helps = problems.iter().flat_map(|problem| problem.help.iter());
        assert!(helps.any(|help| !offers(help, 8).is_empty()), "{purpose:?}: {problems:?}");
    }
}

fn axis() -> impl Strategy<Value = Option<usize>> {
    prop::option::of(prop::sample::select(vec![1, 1, 2, 3, 4, 6, 8, 12]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn offers_are_taken(
        ranks in 1_usize..33, leaves in prop::sample::select(vec![1_usize, 2, 4, 8, 16]),
        pp in axis(), dp in axis(), ep in axis(), tp in axis(), trains: bool,
    ) {
        let purpose = if trains { Purpose::Train } else { Purpose::Plan };
        let axes = [("pp", pp), ("dp", dp), ("ep", ep), ("tp", tp)];
        let axes = axes.iter().filter_map(|(name, n)| n.map(|n| format!("{name}: {n}")));
        let mesh = format!("{{{}}}", axes.collect::<Vec<_>>().join(", "));
        let Err(problems) = check_text(&config(ranks, leaves, &mesh), &[], purpose) else {
            return Ok(());
        };
        let helps = problems.iter().flat_map(|problem| problem.help.iter());
        for help in helps.filter(|help| help.contains("pp ")) {
            let offers = offers(help, ranks);
            prop_assert!(!offers.is_empty(), "{}", help);
            for (ranks, mesh) in offers {
                let checked = check_text(&config(ranks, leaves, &mesh), &[], purpose);
                prop_assert!(checked.is_ok(), "{} ranks, {}: {:?}", ranks, mesh, checked.err());
                let of_data = mesh.contains("{pp: 1, ") && mesh.ends_with(", ep: 1, tp: 1}");
                prop_assert!(!trains || of_data, "{} cannot be trained", mesh);
            }
        }
    }
}
