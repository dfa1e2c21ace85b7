//! Optimizers, one file each, and the one list that names them all.
//!
//! ```text
//! rules in a config ──Rule::update──▶ Update ──rule()──▶ UpdateRule (contract.rs)
//!   muon: {…}                                              checks, units, flops, words
//!   adamw: {…}
//! ```
//!
//! An update is a section of a rule and a variant of [`Update`], so that configs keep the lines of
//! their mistakes; everything else asks [`UpdateRule`], and knows none by name.

mod adamw;
mod contract;
mod dion;
pub(crate) mod muon;
mod normuon;
mod sgd;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use contract::MemoryItem;
pub(crate) use contract::{Applying, Axes, Binding, Group, Launch, Misfit, Needs, Place, Planned};
pub(crate) use contract::{Unit, UpdateRule};

/// The sections of a rule.
pub mod sections {
    pub use super::adamw::AdamWConfig;
    pub use super::dion::{DionConfig, DionScale};
    pub use super::muon::{Coefficients, MuonConfig, Scale};
    pub use super::normuon::NorMuonConfig;
    pub use super::sgd::SgdConfig;
}

use sections::{AdamWConfig, DionConfig, MuonConfig, NorMuonConfig, SgdConfig};

use crate::OptimError;
use crate::selection::Match;

/// Makes the section of each update in [`Rule`], and the variant in [`Update`].
macro_rules! updates {
    ($($(#[$doc:meta])* $section:ident: $Name:ident($Config:ty),)+) => {
        /// A set of parameters and the update they get: give exactly one beside `match`.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct Rule {
            /// Which parameters; `{}` is all of them.
            #[serde(rename = "match", default)]
            pub matches: Match,
            $(
                $(#[$doc])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $section: Option<$Config>,
            )+
        }

        /// An optimizer and its numbers.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Update {
            $($(#[$doc])* $Name($Config),)+
        }

        impl Update {
            /// The sections of a rule, for messages that list the choices.
            pub const WORDS: &'static [&'static str] = &[$(stringify!($section)),+];

            /// One of each, with its defaults.
            pub(crate) fn all() -> Vec<Update> {
                vec![$(Update::$Name(<$Config>::default())),+]
            }

            /// The section of a rule.
            pub fn word(&self) -> &'static str {
                match self {
                    $(Update::$Name(_) => stringify!($section),)+
                }
            }

            /// The name in sentences.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Update::$Name(_) => stringify!($Name),)+
                }
            }

            pub(crate) fn rule(&self) -> &dyn UpdateRule {
                match self {
                    $(Update::$Name(config) => config,)+
                }
            }
        }

        impl Rule {
            /// The updates that it gives: exactly one, if it is valid.
            fn given(&self) -> Vec<Update> {
                let all = [$(self.$section.clone().map(Update::$Name)),+];
                all.into_iter().flatten().collect()
            }
        }
    };
}

updates! {
    /// Orthogonalized momentum, for matrices.
    muon: Muon(MuonConfig),
    /// AdamW, for anything.
    adamw: AdamW(AdamWConfig),
    /// Stochastic gradient descent with momentum, for anything.
    sgd: Sgd(SgdConfig),
    /// Muon with normalized rows, for matrices.
    normuon: NorMuon(NorMuonConfig),
    /// Momentum of low rank, orthonormalized, for matrices.
    dion: Dion(DionConfig),
}

impl Update {
    /// Learning rate before scale and schedule.
    pub fn lr(&self) -> f64 {
        self.rule().lr()
    }

    /// The sections of updates that act on whole matrices.
    pub(crate) fn of_matrices() -> Vec<&'static str> {
        let all = Update::all().into_iter();
        all.filter(|u| u.rule().unit() == Unit::Matrix).map(|update| update.word()).collect()
    }
}

impl Rule {
    /// The update of rule number `index` of a config.
    ///
    /// # Errors
    /// None given, or more than one.
    pub fn update(&self, index: usize) -> Result<Update, OptimError> {
        let mut given = self.given().into_iter();
        match (given.next(), given.next()) {
            (Some(update), None) => Ok(update),
            (None, _) => Err(OptimError::NoUpdate { rule: index }),
            (Some(one), Some(other)) => {
                let (rule, words) = (index, [one.word(), other.word()]);
                Err(OptimError::TwoUpdates { rule, words })
            }
        }
    }

    pub(crate) fn check(&self, index: usize) -> Result<(), OptimError> {
        let update = self.update(index)?;
        update.rule().check(&format!("optimizer.rules[{index}].{}", update.word()))
    }
}
