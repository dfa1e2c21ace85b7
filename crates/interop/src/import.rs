//! From the tensors of an origin to the states of a checkpoint: which is made of which, decided
//! before anything is read.
//!
//! ```text
//! schema ∪ names that are there ─plan─▶ of each state: an expression in tensors that are there
//!        ─▶ joined, transposed, scaled, cast ─▶ chunks, written by several threads
//! ```

use std::collections::BTreeSet;

use checkpoint::{
    Attempt, Chunk, Committed, ExpectedTensor, RankReport, Region, RunState, Store, TensorKey,
    WriteOptions,
};
use layout::region::elements;
use layout::{Dtype, LogicalTensor, Schema};

use crate::adapt::{found, router};
use crate::convert::Types;
use crate::find::{Find, Naming};
use crate::origin::{Origin, state_key};
use crate::rules::Rules;
use crate::source::Source;
use crate::{Bytes, Elements, Error};

/// More threads than any disk keeps busy.
const THREADS_MAX: usize = 256;

/// The slots that a tensor `NAME:SLOT` of a foreign checkpoint may have.
const SLOTS: [&str; 2] = ["adam_m", "adam_v"];

/// A state that is not of the schema: the balancing biases of a layer's router.
#[derive(Debug)]
pub(crate) struct Extra {
    pub key: TensorKey,
    pub shape: Vec<usize>,
    /// The tensor that it is; zeros where there is none.
    pub named: Option<String>,
    /// Whether that tensor must be there.
    pub needed: bool,
}

/// All that an import will do.
pub struct ImportPlan<'a> {
    origin: &'a dyn Origin,
    pub schema: Schema,
    pub states: Vec<Imported>,
    /// Tensors that nothing is made of.
    pub unused: Vec<String>,
    /// The work of rules, each with the number of tensors.
    pub changes: Vec<(String, usize)>,
    types: Types,
}

/// A state, and what it is made of.
pub struct Imported {
    pub key: TensorKey,
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    source: Source,
}

impl Imported {
    /// The tensors that it is made of; none where it is zeros.
    pub fn sources(&self) -> Vec<&str> {
        self.source.names()
    }

    pub fn bytes(&self) -> u64 {
        (elements(&self.shape).unwrap_or(0) * self.dtype.size_bytes()) as u64
    }
}

/// Decides of what every tensor of a schema, and every extra state, is made.
///
/// # Errors
/// Tensors that nothing there is; shapes that do not fit; types that are not turned into the one
/// that is asked for.
pub(crate) fn plan_import<'a>(
    origin: &'a dyn Origin,
    schema: Schema,
    extras: &[Extra],
    (naming, rules): (&Naming, &Rules),
    types: Types,
) -> Result<ImportPlan<'a>, Error> {
    let find = Find::new(origin, naming, rules, &schema);
    let (mut states, mut missing) = (Vec::new(), Vec::new());
    let mut changes: Vec<(String, usize)> = Vec::new();
    let mut note = |change: Option<String>| {
        let Some(change) = change else { return };
        match changes.iter_mut().find(|(other, _)| *other == change) {
            Some((_, number)) => *number += 1,
            None => changes.push((change, 1)),
        }
    };
    for tensor in &schema.tensors {
        match found(&find, tensor)? {
            Some((source, change)) => {
                note(change);
                states.push(state(tensor, "param", types.dtype, source));
            }
            None => missing.push(tensor.name.clone()),
        }
        for slot in SLOTS {
            let name = format!("{}:{slot}", tensor.name);
            if let Ok(Some(source)) = find.whole(&name, &tensor.shape, tensor.published_transposed)
            {
                states.push(state(tensor, slot, Dtype::F32, source));
            }
        }
    }
    if !missing.is_empty() {
        return Err(find.missing(&missing));
    }
    for Extra { key, shape, named, needed } in extras {
        let zeros = Source::Zeros(elements(shape).unwrap_or(0));
        if let Some(name) = named.as_ref().filter(|name| *needed && find.there(name).is_none()) {
            return Err(find.missing(std::slice::from_ref(name)));
        }
        let source = match named.as_ref().filter(|name| find.there(name).is_some()) {
            None => zeros,
            Some(name) => match find.whole(name, shape, false) {
                Ok(source) => source.unwrap_or(zeros),
                Err(misfit) => match router(&find, name, shape)? {
                    Some((source, _)) => source,
                    None => return Err(misfit),
                },
            },
        };
        let (key, shape) = (key.clone(), shape.clone());
        states.push(Imported { key, shape, dtype: Dtype::F32, source });
    }
    let used: BTreeSet<&str> = states.iter().flat_map(Imported::sources).collect();
    let mut unused = origin.names();
    unused.retain(|name| !used.contains(&**name));
    let plan = ImportPlan { origin, schema, states, unused, changes, types };
    // Types that do not go together are told before anything is read.
    plan.states.iter().try_for_each(|state| plan.elements(state).map(drop))?;
    Ok(plan)
}

/// All tensors as they are, of no model that Muster knows.
///
/// # Errors
/// A name that a checkpoint cannot have.
pub fn plan_as_is(origin: &dyn Origin) -> Result<ImportPlan<'_>, Error> {
    let mut states = Vec::new();
    for name in origin.names() {
        let Some((dtype, shape)) = origin.find(&name) else { continue };
        let mut key = state_key(&name);
        if !key.slot_is_valid() {
            // A colon that divides nothing.
            key = TensorKey::new(&*name, "param");
        }
        let source = Source::whole(name, elements(shape).unwrap_or(0));
        states.push(Imported { key, shape: shape.to_vec(), dtype, source });
    }
    let (schema, types) = (Schema::new(Vec::new()), Types { dtype: Dtype::F32, may_round: false });
    let schema = schema.map_err(|error| Error::refused(origin.path(), error.to_string()))?;
    Ok(ImportPlan { origin, schema, states, unused: Vec::new(), changes: Vec::new(), types })
}

fn state(tensor: &LogicalTensor, slot: &str, dtype: Dtype, source: Source) -> Imported {
    let (key, shape) = (TensorKey::new(&*tensor.name, slot), tensor.shape.clone());
    Imported { key, shape, dtype, source }
}

impl ImportPlan<'_> {
    /// The elements of a state.
    ///
    /// # Errors
    /// A type that is not turned into the wanted one.
    pub fn elements<'s>(&'s self, state: &'s Imported) -> Result<Box<dyn Elements + 's>, Error> {
        state.source.elements(self.origin, Types { dtype: state.dtype, ..self.types })
    }

    /// Bytes of all states.
    pub fn bytes(&self) -> u64 {
        self.states.iter().map(Imported::bytes).sum()
    }

    /// States by what happens to the type of their values: (from, to, number of them).
    pub fn casts(&self) -> Vec<(Dtype, Dtype, usize)> {
        let mut changes: Vec<(Dtype, Dtype, usize)> = Vec::new();
        for state in &self.states {
            let first = state.sources().first().and_then(|name| self.origin.find(name));
            let Some((from, _)) = first else { continue };
            let change = (from, state.dtype);
            match changes.iter_mut().find(|(from, to, _)| (*from, *to) == change) {
                Some((.., number)) => *number += 1,
                None => changes.push((change.0, change.1, 1)),
            }
        }
        changes.retain(|(from, to, _)| from != to);
        changes
    }

    /// Writes and commits the states as a checkpoint, by so many threads.
    ///
    /// # Errors
    /// Damaged data; a full disk, and whatever else hinders a save.
    pub fn write(
        &self,
        store: &Store,
        run_state: &RunState,
        threads: usize,
    ) -> Result<Committed, Error> {
        let attempt = Attempt { step: run_state.step, generation: store.claim_generation()? };
        let shares = self.shares(threads.clamp(1, self.states.len().clamp(1, THREADS_MAX)));
        let written = std::thread::scope(|scope| {
            let threads: Vec<_> = (0_u32..)
                .zip(&shares)
                .map(|(rank, share)| {
                    let ranks = (rank, shares.len() as u32);
                    scope.spawn(move || self.write_share(store, attempt, ranks, share))
                })
                .collect();
            threads.into_iter().map(joined).collect::<Result<Vec<RankReport>, Error>>()
        });
        let expected = self.states.iter().map(|state| {
            let (key, global_shape) = (state.key.clone(), state.shape.clone());
            ExpectedTensor { key, dtype: state.dtype, global_shape }
        });
        let expected: Vec<ExpectedTensor> = expected.collect();
        let commit = |reports: Vec<RankReport>| {
            Ok(store.commit(attempt, &self.schema, &expected, &reports, run_state)?)
        };
        written.and_then(commit).inspect_err(|_| {
            // The reason for the failure matters more than leftovers.
            let _ = store.discard(attempt);
        })
    }

    /// The states of each thread: even by bytes, largest first.
    fn shares(&self, threads: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.states.len()).collect();
        order.sort_by_key(|&state| std::cmp::Reverse(self.states[state].bytes()));
        let mut shares = vec![(0_u64, Vec::new()); threads];
        for state in order {
            if let Some((bytes, share)) = shares.iter_mut().min_by_key(|(bytes, _)| *bytes) {
                *bytes += self.states[state].bytes();
                share.push(state);
            }
        }
        let mut shares: Vec<Vec<usize>> = shares.into_iter().map(|(_, share)| share).collect();
        shares.iter_mut().for_each(|share| share.sort_unstable());
        shares
    }

    fn write_share(
        &self,
        store: &Store,
        attempt: Attempt,
        (rank, world): (u32, u32),
        share: &[usize],
    ) -> Result<RankReport, Error> {
        let mut chunks = Vec::with_capacity(share.len());
        for &number in share {
            let state = &self.states[number];
            let (key, whole) = (state.key.clone(), Region::whole(&state.shape));
            let data = Bytes(self.elements(state)?);
            chunks.push(Chunk::new(key, state.dtype, &state.shape, whole, data));
        }
        Ok(store.write_rank(attempt, rank, world, &chunks, &WriteOptions::default())?)
    }
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<Result<T, Error>>) -> Result<T, Error> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
