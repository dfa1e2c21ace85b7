//! The fixed summation tree over virtual ranks (leaves).
//!
//! Gradients of a step are summed over `V` leaves in one tree whose radices are configuration, so
//! the order of every floating-point addition is independent of the number of real ranks. Real
//! ranks host contiguous leaf ranges; each sums the subtrees that lie wholly inside its range (the
//! *maximal complete subtrees*, its partials) and the owner of an element sums those.
//!
//! ```text
//! radices [2, 3]:   root = (n0 + n1)          2 ranks: each range is one node -> one partial each
//!                   n0 = ((l0 + l1) + l2)     3 ranks: {l0 l1} {l2 l3} {l4 l5} -> six partials
//! ```
//!
//! A node is the left fold of its children in order.

use std::ops::Range;

use crate::{LayoutError, share};

/// The tree: `radices[0]` is the root's number of children; their product is the leaf count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    radices: Vec<usize>,
}

/// A node, named by the leaves below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    pub leaves: Range<usize>,
}

/// A rank's work on one of its leaves: compute it into a buffer, then fold buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafStep {
    pub leaf: usize,
    /// The gradient buffer that backward writes this leaf into.
    pub buffer: usize,
    /// `(into, from)` in order: `into += from`; `from` is free afterwards.
    pub folds: Vec<(usize, usize)>,
}

/// A rank's accumulation over its leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accumulation {
    pub steps: Vec<LeafStep>,
    /// Gradient buffers needed.
    pub buffers: usize,
    /// The sums left at the end: each maximal complete subtree and the buffer that holds it.
    pub partials: Vec<(Node, usize)>,
}

/// One instruction of a [`SumProgram`], on a stack of accumulators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// Push a copy of input `i`.
    Push(usize),
    /// Add input `i` to the top.
    AddInput(usize),
    /// Pop the top and add it to the one below.
    Fold,
}

/// How an owner sums the partials of all ranks: straight-line code over a small stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SumProgram {
    pub ops: Vec<ReduceOp>,
    /// Deepest stack.
    pub depth: usize,
}

impl Tree {
    /// A tree with the given radices, root first; an empty list is a single leaf.
    ///
    /// # Errors
    /// A radix below two; more leaves than can be counted.
    pub fn new(radices: &[usize]) -> Result<Tree, LayoutError> {
        if let Some(position) = radices.iter().position(|&radix| radix < 2) {
            let radix = radices[position];
            return Err(LayoutError::Radix { radix, position, radices: radices.to_vec() });
        }
        if radices.iter().try_fold(1_usize, |all, &radix| all.checked_mul(radix)).is_none() {
            return Err(LayoutError::TooManyLeaves { radices: radices.to_vec() });
        }
        Ok(Tree { radices: radices.to_vec() })
    }

    /// The default tree of `leaves` leaves: its prime factors, small ones at the root, so that
    /// powers of two are free rank counts as far as possible.
    pub fn for_leaves(leaves: usize) -> Tree {
        let mut radices = Vec::new();
        let (mut rest, mut factor) = (leaves.max(1), 2);
        // A number without a factor up to its root is prime.
        while factor <= rest / factor {
            while rest.is_multiple_of(factor) {
                radices.push(factor);
                rest /= factor;
            }
            factor += 1;
        }
        if rest > 1 {
            radices.push(rest);
        }
        Tree { radices }
    }

    /// As [`Tree::new`], checked against the number of leaves; empty radices mean the default.
    ///
    /// # Errors
    /// As [`Tree::new`]; a product that is not `leaves`.
    pub fn with_leaves(radices: &[usize], leaves: usize) -> Result<Tree, LayoutError> {
        if radices.is_empty() {
            return Ok(Tree::for_leaves(leaves));
        }
        let tree = Tree::new(radices)?;
        if tree.leaves() != leaves {
            let (radices, product) = (radices.to_vec(), tree.leaves());
            return Err(LayoutError::RadicesProduct { radices, product, leaves });
        }
        Ok(tree)
    }

    /// Radices, root first.
    pub fn radices(&self) -> &[usize] {
        &self.radices
    }

    /// Number of leaves.
    pub fn leaves(&self) -> usize {
        self.radices.iter().product()
    }

    /// The leaves of `rank` among `world`: contiguous, larger shares first.
    ///
    /// # Errors
    /// More ranks than leaves.
    pub fn leaf_range(&self, rank: usize, world: usize) -> Result<Range<usize>, LayoutError> {
        let leaves = self.leaves();
        if world > leaves || world == 0 {
            return Err(LayoutError::TooManyRanks { world, leaves });
        }
        Ok(share(leaves, world, rank))
    }

    /// The maximal complete subtrees inside `range`, in leaf order.
    pub fn maximal_subtrees(&self, range: &Range<usize>) -> Vec<Node> {
        let mut nodes = Vec::new();
        self.collect(0, 0..self.leaves(), range, &mut nodes);
        nodes
    }

    fn collect(&self, depth: usize, node: Range<usize>, range: &Range<usize>, out: &mut Vec<Node>) {
        if node.start >= range.end || node.end <= range.start {
            return;
        }
        if range.start <= node.start && node.end <= range.end {
            out.push(Node { leaves: node });
            return;
        }
        for child in self.children(depth, &node) {
            self.collect(depth + 1, child, range, out);
        }
    }

    fn children(&self, depth: usize, node: &Range<usize>) -> Vec<Range<usize>> {
        let radix = self.radices[depth];
        let width = node.len() / radix;
        let start = node.start;
        (0..radix).map(|i| start + i * width..start + (i + 1) * width).collect()
    }

    /// The partials of every rank, in rank order.
    ///
    /// # Errors
    /// More ranks than leaves.
    pub fn partials(&self, world: usize) -> Result<Vec<Vec<Node>>, LayoutError> {
        (0..world).map(|rank| Ok(self.maximal_subtrees(&self.leaf_range(rank, world)?))).collect()
    }

    /// Whether every one of `world` ranks holds exactly one node, so that the bytes equal those
    /// of a ring reduce-scatter.
    pub fn is_free(&self, world: usize) -> bool {
        (0..world).all(|rank| self.leaf_range(rank, world).is_ok_and(|range| self.is_node(&range)))
    }

    /// Whether these leaves are those of one node: a level's width, at a multiple of it.
    fn is_node(&self, range: &Range<usize>) -> bool {
        let mut width = self.leaves();
        let mut levels = self.radices.iter();
        while width > range.len() {
            let Some(radix) = levels.next() else { return false };
            width /= radix;
        }
        width == range.len() && range.start.is_multiple_of(width)
    }

    /// The rank counts that are free and give every rank as many leaves, for proposals.
    pub fn free_worlds(&self) -> Vec<usize> {
        let even = (1..=self.leaves()).filter(|world| self.leaves().is_multiple_of(*world));
        even.filter(|&world| self.is_free(world)).collect()
    }

    /// How a rank accumulates the leaves of `range` with as few buffers as the tree allows.
    pub fn accumulation(&self, range: &Range<usize>) -> Accumulation {
        let mut builder = Scheduler { tree: self, steps: Vec::new(), free: Vec::new(), buffers: 0 };
        let nodes = self.maximal_subtrees(range);
        let partials = nodes
            .into_iter()
            .map(|node| {
                let buffer = builder.node(self.depth_of(&node.leaves), &node.leaves);
                (node, buffer)
            })
            .collect();
        Accumulation { steps: builder.steps, buffers: builder.buffers, partials }
    }

    fn depth_of(&self, leaves: &Range<usize>) -> usize {
        let mut width = self.leaves();
        let mut depth = 0;
        while width > leaves.len() {
            width /= self.radices[depth];
            depth += 1;
        }
        depth
    }

    /// How an owner sums `partials` (those of all ranks, in leaf order, together covering every
    /// leaf): input `i` of the program is `partials[i]`.
    pub fn combine(&self, partials: &[Node]) -> SumProgram {
        let mut program = SumProgram { ops: Vec::new(), depth: 0 };
        self.emit(0, 0..self.leaves(), partials, false, 0, &mut program);
        program
    }

    fn emit(
        &self,
        depth: usize,
        node: Range<usize>,
        partials: &[Node],
        add: bool,
        stack: usize,
        program: &mut SumProgram,
    ) {
        if let Some(input) = partials.iter().position(|partial| partial.leaves == node) {
            program.ops.push(if add { ReduceOp::AddInput(input) } else { ReduceOp::Push(input) });
            program.depth = program.depth.max(stack + usize::from(!add));
            return;
        }
        let children = self.children(depth, &node);
        for (i, child) in children.into_iter().enumerate() {
            self.emit(depth + 1, child, partials, i > 0, stack + usize::from(i > 0), program);
        }
        if add {
            program.ops.push(ReduceOp::Fold);
        }
    }
}

struct Scheduler<'a> {
    tree: &'a Tree,
    steps: Vec<LeafStep>,
    free: Vec<usize>,
    buffers: usize,
}

impl Scheduler<'_> {
    fn node(&mut self, depth: usize, leaves: &Range<usize>) -> usize {
        if leaves.len() == 1 {
            let buffer = self.free.pop().unwrap_or_else(|| {
                self.buffers += 1;
                self.buffers - 1
            });
            self.steps.push(LeafStep { leaf: leaves.start, buffer, folds: Vec::new() });
            return buffer;
        }
        let children = self.tree.children(depth, leaves);
        let into = self.node(depth + 1, &children[0]);
        for child in &children[1..] {
            let from = self.node(depth + 1, child);
            let step = self.steps.last_mut().expect("a child ends with a leaf step");
            step.folds.push((into, from));
            self.free.push(from);
        }
        into
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs a rank's accumulation on one value per leaf.
    fn accumulate(accumulation: &Accumulation, leaf: &dyn Fn(usize) -> f32) -> Vec<(Node, f32)> {
        let mut buffers = vec![f32::NAN; accumulation.buffers];
        for step in &accumulation.steps {
            buffers[step.buffer] = leaf(step.leaf);
            for &(into, from) in &step.folds {
                buffers[into] += buffers[from];
                buffers[from] = f32::NAN;
            }
        }
        accumulation
            .partials
            .iter()
            .map(|(node, buffer)| (node.clone(), buffers[*buffer]))
            .collect()
    }

    fn run(program: &SumProgram, inputs: &[f32]) -> f32 {
        let mut stack = Vec::new();
        let mut deepest = 0;
        for op in &program.ops {
            match *op {
                ReduceOp::Push(i) => stack.push(inputs[i]),
                ReduceOp::AddInput(i) => *stack.last_mut().unwrap() += inputs[i],
                ReduceOp::Fold => {
                    let top = stack.pop().unwrap();
                    *stack.last_mut().unwrap() += top;
                }
            }
            deepest = deepest.max(stack.len());
        }
        assert_eq!((stack.len(), deepest), (1, program.depth));
        stack[0]
    }

    proptest! {
        #[test]
        fn the_sum_has_the_same_bits_for_any_number_of_ranks(
            radices in prop::collection::vec(2_usize..4, 0..4), seed in any::<u32>(),
        ) {
            let tree = Tree::new(&radices).unwrap();
            let leaf = |i: usize| {
                let hash = (i as u32 + 1).wrapping_mul(seed | 1).wrapping_mul(2_654_435_761);
                f32::from_bits(0x3000_0000 | (hash >> 4)) - 1e-3
            };
            let mut bits = None;
            for world in 1..=tree.leaves() {
                let mut all = Vec::new();
                for rank in 0..world {
                    let range = tree.leaf_range(rank, world).unwrap();
                    all.extend(accumulate(&tree.accumulation(&range), &leaf));
                }
                let nodes: Vec<Node> = all.iter().map(|(node, _)| node.clone()).collect();
                let values: Vec<f32> = all.iter().map(|(_, value)| *value).collect();
                let sum = run(&tree.combine(&nodes), &values).to_bits();
                prop_assert_eq!(*bits.get_or_insert(sum), sum, "world {}", world);
            }
        }

        #[test]
        fn free_worlds_are_those_of_one_partial_each(leaves in 1_usize..100) {
            let tree = Tree::for_leaves(leaves);
            for world in 1..=leaves {
                let partials = tree.partials(world).unwrap();
                let single = partials.iter().all(|nodes| nodes.len() == 1);
                prop_assert_eq!(tree.is_free(world), single, "{} of {}", world, leaves);
            }
        }

        #[test]
        fn ranges_tile_the_leaves(leaves in 1_usize..40, world in 1_usize..40) {
            let tree = Tree::for_leaves(leaves);
            prop_assert_eq!(tree.leaves(), leaves);
            if world <= leaves {
                let mut next = 0;
                for rank in 0..world {
                    let range = tree.leaf_range(rank, world).unwrap();
                    prop_assert!(range.start == next && !range.is_empty());
                    next = range.end;
                }
                prop_assert_eq!(next, leaves);
            } else {
                prop_assert!(tree.leaf_range(0, world).is_err());
            }
        }

        #[test]
        fn buffers_stay_logarithmic(leaves in 1_usize..100) {
            let tree = Tree::for_leaves(leaves);
            let accumulation = tree.accumulation(&(0..leaves));
            prop_assert!(accumulation.buffers <= tree.radices().len() + 1);
        }
    }

    #[test]
    fn free_worlds_of_twelve() {
        assert_eq!(Tree::for_leaves(12).radices(), [2, 2, 3]);
        assert_eq!(Tree::for_leaves(12).free_worlds(), [1, 2, 4, 12]);
        assert_eq!(Tree::new(&[3, 2, 2]).unwrap().free_worlds(), [1, 3, 6, 12]);
    }

    #[test]
    fn a_large_prime_is_one_level() {
        let prime = 4_294_967_291;
        assert_eq!(Tree::for_leaves(prime).radices(), [prime]);
        assert_eq!(Tree::for_leaves(2 * 65_521).radices(), [2, 65_521]);
        assert_eq!(Tree::for_leaves(65_521).free_worlds(), [1, 65_521]);
    }

    #[test]
    fn refusals_name_the_numbers() {
        let error = Tree::with_leaves(&[2, 3], 8).unwrap_err();
        assert_eq!(
            error.to_string(),
            "radices [2, 3] multiply to 6, not to the 8 leaves of the batch"
        );
        assert!(Tree::new(&[2, 1]).is_err());
        let error = Tree::new(&[1 << 40, 1 << 40]).unwrap_err().to_string();
        assert!(error.contains("multiply to more leaves than can be counted"), "{error}");
    }
}
