//! A program cut at the borders of hosts: what of it each host can compute of its own inputs, and
//! what is left to do with that.
//!
//! ```text
//! (a + b) + (c + d)   inputs a b | c d    host 0: a + b    host 1: c + d    then: 0 + 1
//! (a + b) + (c + d)   inputs a | b c d    host 0: a        host 1: b, c + d then: (0 + 1) + 2
//! ```
//!
//! Every addition is made once, of the same two operands and in the same order; only where it is
//! made changes.

use std::ops::Range;

use layout::{ReduceOp, SumProgram};

/// One partial of a host: its inputs, and the program that sums them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Of the inputs of all.
    pub inputs: Range<usize>,
    /// Over these alone, counted from 0.
    pub program: SumProgram,
}

/// A program in two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Split {
    /// Of every host, in order.
    pub parts: Vec<Vec<Part>>,
    /// Over the parts of all hosts.
    pub rest: SumProgram,
}

/// A value of a program: an input, or a sum of two values before it in the list.
struct Value {
    inputs: Range<usize>,
    of: Option<(usize, usize)>,
}

/// `program` in two, where the inputs of host `h` are the next `counts[h]`; `None` of a program
/// that does not read each input once, in order, to one sum.
pub(super) fn split(program: &SumProgram, counts: &[usize]) -> Option<Split> {
    let (values, root) = values(program)?;
    let hosts = counts.iter().scan(0, |end, count| {
        *end += count;
        Some(*end - count..*end)
    });
    let hosts: Vec<Range<usize>> = hosts.collect();
    let mut cut = Cut { values: &values, hosts: &hosts, found: Vec::new() };
    if values[root].inputs != (0..counts.iter().sum()) {
        return None;
    }
    cut.find(root);
    let Cut { found, .. } = cut;
    let compiled = |value, input: &dyn Fn(usize) -> Option<usize>| compile(&values, value, input);
    let mut parts = vec![Vec::new(); counts.len()];
    for &(host, value) in &found {
        let inputs = values[value].inputs.clone();
        let leaf = |value: usize| {
            let Value { inputs: own, of } = &values[value];
            of.is_none().then_some(own.start - inputs.start)
        };
        let program = compiled(value, &leaf);
        parts[host].push(Part { inputs: inputs.clone(), program });
    }
    let mut place = vec![None; values.len()];
    found.iter().enumerate().for_each(|(index, &(_, value))| place[value] = Some(index));
    let rest = compiled(root, &|value| place[value]);
    Some(Split { parts, rest })
}

/// `program` where each input is a partial: all is left to do.
pub(super) fn apart(program: &SumProgram, counts: &[usize]) -> Split {
    let only = SumProgram { ops: vec![ReduceOp::Push(0)], depth: 1 };
    let mut next = 0;
    let mut part = || {
        next += 1;
        Part { inputs: next - 1..next, program: only.clone() }
    };
    let parts = counts.iter().map(|count| (0..*count).map(|_| part()).collect()).collect();
    Split { parts, rest: program.clone() }
}

/// All values of a program, and which of them is the sum of all.
fn values(program: &SumProgram) -> Option<(Vec<Value>, usize)> {
    let (mut values, mut stack, mut next) = (Vec::new(), Vec::<usize>::new(), 0);
    for op in &program.ops {
        if let ReduceOp::Push(input) | ReduceOp::AddInput(input) = *op {
            if input != next {
                return None;
            }
            next += 1;
            stack.push(values.len());
            values.push(Value { inputs: input..next, of: None });
        }
        if !matches!(op, ReduceOp::Push(_)) {
            let (second, first) = (stack.pop()?, stack.pop()?);
            let inputs = values[first].inputs.start..values[second].inputs.end;
            stack.push(values.len());
            values.push(Value { inputs, of: Some((first, second)) });
        }
    }
    let root = stack.pop()?;
    stack.is_empty().then_some((values, root))
}

/// Looks for the largest values that lie in one host each.
struct Cut<'a> {
    values: &'a [Value],
    hosts: &'a [Range<usize>],
    /// Host and value, in order.
    found: Vec<(usize, usize)>,
}

impl Cut<'_> {
    /// Programs may be as deep as they have inputs, so neither this nor [`compile`] recurses.
    fn find(&mut self, root: usize) {
        let mut open = vec![root];
        while let Some(value) = open.pop() {
            let Value { inputs, of } = &self.values[value];
            // The last host that begins there or before, as inputs are of the next one then.
            let host = self.hosts.partition_point(|host| host.start <= inputs.start);
            let host = host.checked_sub(1).filter(|&host| inputs.end <= self.hosts[host].end);
            match (host, *of) {
                (Some(host), _) => self.found.push((host, value)),
                (None, Some((first, second))) => open.extend([second, first]),
                // An input always lies in one host.
                (None, None) => {}
            }
        }
    }
}

/// A step that is left of compiling a program.
enum Task {
    /// A number more on the stack.
    Value(usize),
    /// To be added to the number on top.
    Second(usize),
    Fold,
}

/// The program that computes `value`, where `input` says which values are given.
fn compile(values: &[Value], value: usize, input: &dyn Fn(usize) -> Option<usize>) -> SumProgram {
    let (mut program, mut height) = (SumProgram { ops: Vec::new(), depth: 0 }, 0);
    let mut tasks = vec![Task::Value(value)];
    while let Some(task) = tasks.pop() {
        match task {
            Task::Value(value) => match (input(value), values[value].of) {
                (Some(input), _) => {
                    program.ops.push(ReduceOp::Push(input));
                    height += 1;
                    program.depth = program.depth.max(height);
                }
                (None, Some((first, second))) => {
                    tasks.extend([Task::Second(second), Task::Value(first)]);
                }
                (None, None) => {}
            },
            Task::Second(value) => match input(value) {
                Some(input) => program.ops.push(ReduceOp::AddInput(input)),
                None => tasks.extend([Task::Fold, Task::Value(value)]),
            },
            Task::Fold => {
                program.ops.push(ReduceOp::Fold);
                height -= 1;
            }
        }
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use layout::{Node, Tree};
    use proptest::prelude::*;

    /// The value that a program computes, as its written form.
    fn written(program: &SumProgram, inputs: &[String]) -> String {
        let mut stack: Vec<String> = Vec::new();
        let mut deepest = 0;
        for op in &program.ops {
            let second = match *op {
                ReduceOp::Push(input) => {
                    stack.push(inputs[input].clone());
                    deepest = deepest.max(stack.len());
                    continue;
                }
                ReduceOp::AddInput(input) => inputs[input].clone(),
                ReduceOp::Fold => stack.pop().unwrap(),
            };
            let first = stack.pop().unwrap();
            stack.push(format!("({first}+{second})"));
        }
        assert_eq!((stack.len(), deepest), (1, program.depth));
        stack.remove(0)
    }

    fn nodes(tree: &Tree, world: usize) -> Vec<Vec<Node>> {
        tree.partials(world).unwrap()
    }

    #[test]
    fn a_host_whose_leaves_are_one_node_gives_one_partial() {
        let tree = Tree::new(&[2, 2, 2]).unwrap();
        let partials = nodes(&tree, 4).concat();
        let halves = split(&tree.combine(&partials), &[2, 2]).unwrap();
        assert_eq!(halves.parts.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(halves.rest.ops, [ReduceOp::Push(0), ReduceOp::AddInput(1)]);
        let odd = split(&tree.combine(&partials), &[1, 3]).unwrap();
        assert_eq!(odd.parts.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn what_is_no_sum_of_all_inputs_in_order_is_not_cut() {
        let ops = [
            vec![],
            vec![ReduceOp::Push(0), ReduceOp::Push(1)],
            vec![ReduceOp::Push(1), ReduceOp::AddInput(0)],
            vec![ReduceOp::AddInput(0), ReduceOp::Push(1)],
            vec![ReduceOp::Push(0), ReduceOp::Fold],
            vec![ReduceOp::Push(0)],
        ];
        for ops in ops {
            assert_eq!(split(&SumProgram { ops: ops.clone(), depth: 1 }, &[1, 1]), None, "{ops:?}");
        }
    }

    /// One radix for all leaves.
    #[test]
    fn a_program_as_deep_as_it_is_long_is_cut() {
        let tree = Tree::new(&[1 << 16]).unwrap();
        let leaves: Vec<Node> = (0..1 << 16).map(|at| Node { leaves: at..at + 1 }).collect();
        let cut = split(&tree.combine(&leaves), &[1 << 15, 1 << 15]).unwrap();
        assert_eq!(cut.parts.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1 << 15]);
        assert_eq!((cut.rest.ops.len(), cut.rest.depth), ((1 << 15) + 1, 1));
    }

    proptest! {
        #[test]
        fn the_two_together_make_the_same_additions(
            radices in prop::collection::vec(2_usize..5, 1..4),
            world in 1_usize..24,
            cuts in prop::collection::vec(0_usize..24, 1..4),
        ) {
            let tree = Tree::new(&radices).unwrap();
            let partials = nodes(&tree, world.min(tree.leaves())).concat();
            let program = tree.combine(&partials);
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (partials.len() + 1)).collect();
            ends.push(partials.len());
            ends.sort_unstable();
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let counts: Vec<usize> = starts.zip(&ends).map(|(start, end)| end - start).collect();
            let inputs: Vec<String> = (0..partials.len()).map(|i| i.to_string()).collect();
            let Split { parts, rest } = split(&program, &counts).unwrap();
            let mut end = 0;
            let mut made = Vec::new();
            for (parts, count) in parts.iter().zip(&counts) {
                let before = end;
                for part in parts {
                    prop_assert_eq!(part.inputs.start, end);
                    end = part.inputs.end;
                    made.push(written(&part.program, &inputs[part.inputs.clone()]));
                }
                prop_assert_eq!(end - before, *count);
            }
            prop_assert_eq!(written(&rest, &made), written(&program, &inputs));
        }
    }
}
