//! The header of a run: all that was decided, as its first event.

use crate::config::Config;
use crate::event::{Buckets, Corpus, Header, Offload};
use crate::{RunPlan, TrainError};

impl RunPlan {
    /// The header of a run; `buckets` is why they have their size.
    ///
    /// # Errors
    /// As [`RunPlan::memory`].
    pub fn header(
        &self,
        config: &Config,
        corpus: Vec<Corpus>,
        digests: (String, String),
        (run_dir, buckets): (String, String),
        offload: Option<Offload>,
    ) -> Result<Header, TrainError> {
        let memories: Result<Vec<_>, _> = (0..self.world).map(|rank| self.memory(rank)).collect();
        let total = |items: &Vec<(String, u64)>| items.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let memory = memories?.into_iter().max_by_key(total).unwrap_or_default();
        let critical = self.ownership.critical().map(|piece| {
            let name = &self.schema.tensors[piece.tensor].name;
            format!("{name} rows {}..{}", piece.rows.start, piece.rows.end)
        });
        let table = optim::table(&self.schema, &self.updates);
        Ok(Header {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: config.name.clone(),
            config_digest: digests.0,
            data_digest: digests.1,
            parameters: self.schema.parameters() as u64,
            active_parameters: self.active_parameters,
            steps: config.train.steps,
            tokens_per_step: config.batch.tokens_per_step(),
            leaves: config.batch.leaves,
            radices: self.tree.radices().to_vec(),
            ranks: self.world,
            backend: format!("{:?}", config.ranks.backend).to_lowercase(),
            threads: self.threads,
            cpus: String::new(),
            restarts: String::new(),
            device: format!("{:?}", config.ranks.device).to_lowercase(),
            weights: self.weights.to_string(),
            free: self.tree.is_free(self.world),
            byte_factor: self.byte_factor(),
            hosts: None,
            mixed_cpus: config.ranks.mixed_cpus,
            memory,
            buckets: Some(Buckets {
                count: self.flat.buckets.len(),
                bytes: 4 * self.bucket_elements as u64,
                reason: buckets,
            }),
            offload,
            optimizer: table.lines().map(str::to_owned).collect(),
            balance: self.ownership.balance(),
            critical,
            clip: config.optimizer.clip.to_string(),
            corpus,
            run_dir,
        })
    }
}
