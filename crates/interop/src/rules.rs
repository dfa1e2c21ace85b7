//! The changes of a model that an import may make.

use std::ops::Range;

/// Rules that are allowed; see `adapt`.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    pub vocabulary: bool,
    pub tied: bool,
    pub experts: bool,
    /// The layers that the model's are, counted there.
    pub layers: Option<Range<usize>>,
    /// Of routers that are drawn: seed, and standard deviation.
    pub seed: u64,
    pub init_std: f64,
}

/// The words before the number of a layer.
const LAYER_WORDS: [&str; 2] = ["layers.", "h."];

impl Rules {
    /// The name of a tensor as it would be in the layer that it is taken from.
    pub(crate) fn layer_there(&self, name: &str) -> String {
        match (&self.layers, layer_of(name)) {
            (Some(layers), Some((before, number, after))) => {
                format!("{before}{}.{after}", number + layers.start)
            }
            _ => name.to_owned(),
        }
    }

    /// Whether a tensor is of a layer that is not among those that are taken.
    pub(crate) fn passes_over(&self, name: &str) -> bool {
        let of = layer_of(name).map(|(_, number, _)| number);
        self.layers.as_ref().zip(of).is_some_and(|(layers, number)| !layers.contains(&number))
    }
}

/// The layer that a name is of: before its number, the number, and after it.
fn layer_of(name: &str) -> Option<(&str, usize, &str)> {
    LAYER_WORDS.iter().find_map(|word| {
        let begins = name.starts_with(word);
        let at = if begins { Some(0) } else { name.find(&format!(".{word}")).map(|at| at + 1) };
        let (before, rest) = name.split_at(at? + word.len());
        let (number, after) = rest.split_once('.').unwrap_or((rest, ""));
        Some((before, number.parse().ok()?, after))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted_where_they_are() {
        let rules = Rules { layers: Some(2..4), ..Rules::default() };
        assert_eq!(rules.layer_there("model.layers.1.mlp.w"), "model.layers.3.mlp.w");
        assert_eq!(rules.layer_there("h.0.ln_1.weight"), "h.2.ln_1.weight");
        assert_eq!(rules.layer_there("lm_head.weight"), "lm_head.weight");
        assert_eq!(rules.layer_there("model.norm.weight"), "model.norm.weight");
        assert!(rules.passes_over("model.layers.1.a") && !rules.passes_over("model.layers.2.a"));
        assert!(!rules.passes_over("lm_head.weight"));
    }
}
