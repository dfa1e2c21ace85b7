//! From a config to an architecture: a section over its preset over plain defaults, checked as a
//! whole.

use crate::ModelError;
use crate::architecture::{Architecture, Latent, Moe};
use crate::check::Draft;
use crate::config::{
    Activation, LatentConfig, ModelConfig, MoeConfig, Names, Norm, Positions, Preset, QkNorm,
    Scores,
};

impl ModelConfig {
    /// Decides everything: this section over its preset over plain defaults.
    ///
    /// `tokenizer_vocab` is the tokenizer's number of tokens; `seq_len` the window length.
    ///
    /// # Errors
    /// A size that nothing gives; sizes that do not divide; a vocabulary smaller than the
    /// tokenizer's; a window longer than the position table; a mixture without a layer; more
    /// parameters than can be addressed.
    pub fn resolve(
        &self,
        tokenizer_vocab: usize,
        seq_len: usize,
    ) -> Result<Architecture, ModelError> {
        let base = self.preset.map(Preset::config).unwrap_or_default();
        let need = |value: Option<usize>, key| {
            let hint = "set it, or start from a preset with model.preset";
            value.ok_or(ModelError::Missing { key, hint })
        };
        let d_model = need(self.d_model.or(base.d_model), "d_model")?;
        let heads = need(self.heads.or(base.heads), "heads")?;
        // A preset's head width belongs to its own width and heads.
        let inherited = base.head_dim.filter(|_| self.d_model.is_none() && self.heads.is_none());
        let norm_eps = self.norm_eps.or(base.norm_eps).unwrap_or(1e-5);
        let latent = self.latent(&base, norm_eps)?;
        let given = self.head_dim.or(inherited.filter(|_| latent.is_none()));
        let names = if latent.is_some() { Names::DeepseekV3 } else { Names::Llama };
        let moe = self.moe(&base)?;
        let d_ff = self.d_ff.or(base.d_ff);
        let all_experts = moe.as_ref().is_some_and(|moe| moe.first_dense_layers == 0);
        let architecture = Architecture {
            names: self.names.or(base.names).unwrap_or(names),
            vocab_size: self
                .vocab_size
                .or(base.vocab_size)
                .unwrap_or(tokenizer_vocab.next_multiple_of(64)),
            layers: need(self.layers.or(base.layers), "layers")?,
            d_model,
            heads,
            kv_heads: self.kv_heads.or(base.kv_heads).unwrap_or(heads),
            head_dim: given.unwrap_or(0),
            norm: self.norm.or(base.norm).unwrap_or(Norm::Rms),
            norm_eps,
            positions: self.positions.or(base.positions).unwrap_or(Positions::rotary(10_000.0)),
            qk_norm: self.qk_norm.or(base.qk_norm).unwrap_or(QkNorm::None),
            attention_bias: self.attention_bias.or(base.attention_bias).unwrap_or(false),
            latent,
            mlp_bias: self.mlp_bias.or(base.mlp_bias).unwrap_or(false),
            activation: self.activation.or(base.activation).unwrap_or(Activation::Swiglu),
            d_ff: if all_experts { d_ff.unwrap_or(0) } else { need(d_ff, "d_ff")? },
            moe,
            tie_embeddings: self.tie_embeddings.or(base.tie_embeddings).unwrap_or(false),
            init_std: self.init_std.or(base.init_std).unwrap_or(0.02),
        };
        let mut draft = Draft {
            architecture,
            gives_head_dim: self.head_dim.is_some(),
            head_dim_follows: given.is_none(),
            tokenizer_vocab,
            seq_len,
        };
        draft.follow();
        draft.check()
    }

    fn latent(&self, base: &ModelConfig, norm_eps: f64) -> Result<Option<Latent>, ModelError> {
        let empty = LatentConfig::default();
        let (own, base) = match (&self.latent, &base.latent) {
            (None, None) => return Ok(None),
            (own, base) => (own.as_ref().unwrap_or(&empty), base.as_ref().unwrap_or(&empty)),
        };
        let need = |value: Option<usize>, key| {
            let hint = "latent attention needs it";
            value.ok_or(ModelError::Missing { key, hint })
        };
        Ok(Some(Latent {
            q_rank: own.q_rank.or(base.q_rank).filter(|&rank| rank > 0),
            kv_rank: need(own.kv_rank.or(base.kv_rank), "latent.kv_rank")?,
            nope_dim: need(own.nope_dim.or(base.nope_dim), "latent.nope_dim")?,
            rope_dim: need(own.rope_dim.or(base.rope_dim), "latent.rope_dim")?,
            value_dim: need(own.value_dim.or(base.value_dim), "latent.value_dim")?,
            // The same model, whether it is told once or twice.
            norm_eps: own.norm_eps.or(base.norm_eps).filter(|eps| *eps != norm_eps),
        }))
    }

    fn moe(&self, base: &ModelConfig) -> Result<Option<Moe>, ModelError> {
        let empty = MoeConfig::default();
        let (own, base) = match (&self.moe, &base.moe) {
            (None, None) => return Ok(None),
            (own, base) => (own.as_ref().unwrap_or(&empty), base.as_ref().unwrap_or(&empty)),
        };
        let need = |value: Option<usize>, key| {
            let hint = "a mixture of experts needs it";
            value.ok_or(ModelError::Missing { key, hint })
        };
        Ok(Some(Moe {
            experts: need(own.experts.or(base.experts), "moe.experts")?,
            top_k: need(own.top_k.or(base.top_k), "moe.top_k")?,
            groups: own.groups.or(base.groups).unwrap_or(1),
            top_groups: own.top_groups.or(base.top_groups).unwrap_or(1),
            d_ff: need(own.d_ff.or(base.d_ff), "moe.d_ff")?,
            scores: own.scores.or(base.scores).unwrap_or(Scores::Softmax),
            normalize_top_k: own.normalize_top_k.or(base.normalize_top_k).unwrap_or(true),
            route_scale: own.route_scale.or(base.route_scale).unwrap_or(1.0),
            balance_rate: own.balance_rate.or(base.balance_rate).unwrap_or(0.0),
            aux_loss: own.aux_loss.or(base.aux_loss).unwrap_or(0.0),
            z_loss: own.z_loss.or(base.z_loss).unwrap_or(0.0),
            shared_experts: own.shared_experts.or(base.shared_experts).unwrap_or(0),
            first_dense_layers: own.first_dense_layers.or(base.first_dense_layers).unwrap_or(0),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_of_short_vectors_have_an_epsilon_of_their_own() {
        let of = |norm_eps: f64, own: Option<f64>| {
            let sizes = Preset::DeepseekV3.config().latent.unwrap();
            let latent = LatentConfig { norm_eps: own, ..sizes };
            let preset = ModelConfig { latent: None, preset: None, ..Preset::DeepseekV3.config() };
            let config = ModelConfig { norm_eps: Some(norm_eps), latent: Some(latent), ..preset };
            config.resolve(2, 64).unwrap().latent.unwrap().norm_eps
        };
        assert_eq!((of(1e-5, None), of(1e-5, Some(1e-6))), (None, Some(1e-6)));
        assert_eq!(of(1e-6, Some(1e-6)), None);
        let preset = Preset::DeepseekV3;
        let config =
            ModelConfig { preset: Some(preset), norm_eps: Some(1e-3), ..ModelConfig::default() };
        assert_eq!(config.resolve(2, 64).unwrap().latent.unwrap().norm_eps, Some(1e-6));
    }

    #[test]
    fn a_preset_can_be_narrowed() {
        let config = ModelConfig {
            preset: Some(Preset::Qwen3Moe30b),
            layers: Some(2),
            vocab_size: Some(512),
            ..ModelConfig::default()
        };
        let architecture = config.resolve(257, 64).unwrap();
        assert_eq!((architecture.layers, architecture.head_dim), (2, 128));
        assert_eq!(architecture.moe.unwrap().experts, 128);
    }

    #[test]
    fn refusals_name_what_would_divide() {
        let config = ModelConfig {
            preset: Some(Preset::TinyMoe),
            d_model: Some(100),
            heads: Some(6),
            ..ModelConfig::default()
        };
        let error = config.resolve(257, 64).unwrap_err();
        assert_eq!(
            error.to_string(),
            "model.d_model = 100: heads = 6 does not divide it; use heads = 2, or d_model = 96"
        );
    }

    #[test]
    fn a_mixture_needs_a_layer() {
        let moe = MoeConfig { first_dense_layers: Some(4), ..MoeConfig::default() };
        let config =
            ModelConfig { preset: Some(Preset::TinyMoe), moe: Some(moe), ..ModelConfig::default() };
        // The preset has four layers, all of them with experts, and so no width of a dense MLP.
        let config = ModelConfig { d_ff: Some(128), ..config };
        assert_eq!(
            config.resolve(257, 64).unwrap_err().to_string(),
            "model.moe.first_dense_layers = 4: layers = 4 leaves no layer with experts; \
             use at most 3"
        );
    }

    #[test]
    fn a_model_too_large_to_address_is_counted() {
        let wide = |layers, experts, d_ff| ModelConfig {
            preset: Some(Preset::Mixtral8x7b),
            layers: Some(layers),
            moe: Some(MoeConfig { experts: Some(experts), d_ff, ..MoeConfig::default() }),
            ..ModelConfig::default()
        };
        let message = |config: ModelConfig| config.resolve(257, 64).unwrap_err().to_string();
        // 10 000 layers of 8·3·4096·16 777 216 in experts, 32 768 in the router, 41 943 040 in
        // attention and 8192 in norms; twice 32 000·4096 outside, and a norm.
        let error = message(wide(10_000, 8, Some(16_777_216)));
        assert!(error.contains("16493094518788096"), "{error}");
        let error = message(wide(10_000, 65_536, Some(1)));
        assert!(error.contains("tensors"), "{error}");
    }

    #[test]
    fn a_vocabulary_smaller_than_the_tokenizers_is_refused() {
        let config = ModelConfig {
            preset: Some(Preset::TinyMoe),
            vocab_size: Some(256),
            ..ModelConfig::default()
        };
        let error = config.resolve(257, 64).unwrap_err().to_string();
        assert!(error.contains("the tokenizer has 257 tokens; use 320 or more"), "{error}");
    }
}
