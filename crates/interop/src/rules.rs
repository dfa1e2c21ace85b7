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
        let Some(layers) = &self.layers else { return name.to_owned() };
        for word in LAYER_WORDS {
            let begins = name.starts_with(word);
            let at = if begins { Some(0) } else { name.find(&format!(".{word}")).map(|at| at + 1) };
            let Some((before, rest)) = at.map(|at| name.split_at(at + word.len())) else {
                continue;
            };
            let (number, after) = rest.split_once('.').unwrap_or((rest, ""));
            if let Ok(number) = number.parse::<usize>() {
                return format!("{before}{}.{after}", number + layers.start);
            }
        }
        name.to_owned()
    }
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
    }
}
