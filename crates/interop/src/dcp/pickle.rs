//! A reader of Python pickles that builds a graph of values and executes nothing.
//!
//! ```text
//! opcodes ─▶ stack, marks, memo ─▶ nodes (a callable and its arguments stay what they are: a node)
//! ```
//! Invariants:
//! - each opcode makes at most one node and one place on the stack, so memory is bounded by a
//!   constant times the pickle's length; nothing is allocated on a number that it states;
//! - texts and bytes are borrowed from the pickle;
//! - the names of globals are compared with a list of the caller's, never looked up;
//! - nodes refer to nodes, which may be shared or circular: whoever walks them bounds the walk.

use std::collections::HashMap;
use std::fmt;

use thiserror::Error;

/// Number of a node.
pub type Id = u32;

/// A value, or the description of one that Python would make.
#[derive(Debug, Clone, PartialEq)]
pub enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits: two's complement, little-endian.
    Long(&'a [u8]),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A module and a name in it.
    Global(&'a str, &'a str),
    /// A key of whoever wrote the pickle, by which it keeps something outside.
    Persistent(Id),
    Object(Box<Object>),
}

/// `callable(*arguments)`, and what was done to the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    pub callable: Id,
    pub arguments: Id,
    pub state: Option<Id>,
    /// Set as `result[key] = value`.
    pub items: Vec<(Id, Id)>,
    /// Appended.
    pub elements: Vec<Id>,
}

/// Which globals a pickle may name.
#[derive(Clone, Copy)]
pub enum Globals<'l> {
    /// These alone, as (module, name).
    Only(&'l [(&'l str, &'l str)]),
    /// Any: the caller looks at those that it meets.
    Any,
}

/// Why a pickle cannot be read, and where.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("byte {at} of the pickle: {fault}")]
pub struct PickleError {
    /// Of the opcode at fault, from the pickle's beginning.
    pub at: usize,
    pub fault: Fault,
}

/// Faults of a pickle.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Fault {
    #[error("it ends where {0} more bytes are needed")]
    Ends(u64),
    #[error("it has {0} bytes; at most {max} are read", max = u32::MAX)]
    TooLong(usize),
    #[error("it begins with no protocol; 2 to 5 can be read")]
    NoProtocol,
    #[error("it is of protocol {0}; 2 to 5 can be read")]
    Protocol(u8),
    #[error("opcode {0:#04x} is none that is read")]
    Opcode(u8),
    #[error("`{module}.{name}` is no name that is expected here, and nothing is executed")]
    Global { module: String, name: String },
    #[error("the stack has too few values")]
    Stack,
    #[error("nothing is marked")]
    Mark,
    #[error("nothing is remembered as {0}")]
    Memo(u32),
    #[error("there is {found}, and {wanted} is needed")]
    Kind { wanted: &'static str, found: &'static str },
    #[error("a text is no UTF-8")]
    Text,
    #[error("a dictionary has a key without a value")]
    Odd,
    #[error("{0} bytes follow its end")]
    Rest(usize),
    #[error("{0} values are left at its end, and one is needed")]
    Left(usize),
}

/// The values of a pickle.
pub struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    /// By node, where in the pickle it was made.
    places: Vec<u32>,
    root: Id,
    bytes: usize,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle that is all of `bytes`.
    ///
    /// # Errors
    /// It is damaged, names a global that is not allowed, or uses opcodes of protocols 0 and 1 that
    /// none of PyTorch's files has.
    pub fn read(bytes: &'a [u8], globals: Globals) -> Result<Pickle<'a>, PickleError> {
        if u32::try_from(bytes.len()).is_err() {
            return Err(PickleError { at: 0, fault: Fault::TooLong(bytes.len()) });
        }
        let mut machine = Machine::new(bytes, globals);
        match machine.run() {
            Ok(root) => {
                let Machine { nodes, places, .. } = machine;
                Ok(Pickle { nodes, places, root, bytes: bytes.len() })
            }
            Err(fault) => Err(PickleError { at: machine.begun, fault }),
        }
    }

    pub fn root(&self) -> Id {
        self.root
    }

    /// A value, by a number that came from this pickle.
    pub fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id as usize]
    }

    /// Where in the pickle a value was made.
    pub fn place(&self, id: Id) -> usize {
        self.places[id as usize] as usize
    }

    /// Length of the pickle, by which walks over its values are bounded.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Node<'_> {
    /// For messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Node::None => "None",
            Node::Bool(_) => "a bool",
            Node::Int(_) | Node::Long(_) => "an int",
            Node::Float(_) => "a float",
            Node::Text(_) => "a text",
            Node::Bytes(_) => "bytes",
            Node::List(_) => "a list",
            Node::Tuple(_) => "a tuple",
            Node::Set(_) => "a set",
            Node::Dict(_) => "a dict",
            Node::Global(..) => "a global",
            Node::Persistent(_) => "a persistent id",
            Node::Object(_) => "an object",
        }
    }
}

impl fmt::Debug for Pickle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a pickle of {} bytes, {} values", self.bytes, self.nodes.len())
    }
}

struct Machine<'a, 'l> {
    bytes: &'a [u8],
    at: usize,
    /// Where the opcode at hand begins.
    begun: usize,
    globals: Globals<'l>,
    nodes: Vec<Node<'a>>,
    places: Vec<u32>,
    stack: Vec<Id>,
    /// Lengths of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a, 'l> Machine<'a, 'l> {
    fn new(bytes: &'a [u8], globals: Globals<'l>) -> Machine<'a, 'l> {
        Machine {
            bytes,
            at: 0,
            begun: 0,
            globals,
            nodes: Vec::new(),
            places: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    fn run(&mut self) -> Result<Id, Fault> {
        if self.bytes.first() != Some(&0x80) {
            return Err(Fault::NoProtocol);
        }
        self.at = 1;
        let protocol = self.byte()?;
        if !(2..=5).contains(&protocol) {
            return Err(Fault::Protocol(protocol));
        }
        loop {
            self.begun = self.at;
            let opcode = self.byte()?;
            if opcode == b'.' {
                let root = self.pop()?;
                let rest = self.bytes.len() - self.at;
                return match (self.stack.len() + self.marks.len(), rest) {
                    (0, 0) => Ok(root),
                    (0, rest) => Err(Fault::Rest(rest)),
                    (left, _) => Err(Fault::Left(left + 1)),
                };
            }
            let is_known = self.scalar(opcode)?
                || self.container(opcode)?
                || self.memorize(opcode)?
                || self.object(opcode)?;
            if !is_known {
                return Err(Fault::Opcode(opcode));
            }
        }
    }

    /// Opcodes of values without parts.
    fn scalar(&mut self, opcode: u8) -> Result<bool, Fault> {
        let node = match opcode {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'J' => Node::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Node::Int(self.byte()?.into()),
            b'M' => Node::Int(u16::from_le_bytes(self.array()?).into()),
            0x8a => {
                let len = self.byte()?;
                integer(self.take(len.into())?)
            }
            0x8b => {
                let len = u32::from_le_bytes(self.array()?);
                integer(self.take(len.into())?)
            }
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            b'X' => self.text::<4>()?,
            0x8c => self.text::<1>()?,
            0x8d => self.text::<8>()?,
            b'B' => Node::Bytes(self.counted::<4>()?),
            b'C' => Node::Bytes(self.counted::<1>()?),
            0x8e | 0x96 => Node::Bytes(self.counted::<8>()?),
            // Strings of Python 2.
            b'T' => old_text(self.counted::<4>()?),
            b'U' => old_text(self.counted::<1>()?),
            // The length of a frame, which says nothing about values.
            0x95 => {
                let len = u64::from_le_bytes(self.array()?);
                let has = (self.bytes.len() - self.at) as u64;
                return if len <= has { Ok(true) } else { Err(Fault::Ends(len - has)) };
            }
            _ => return Ok(false),
        };
        self.push(node);
        Ok(true)
    }

    /// Opcodes of values with parts, and of the stack.
    fn container(&mut self, opcode: u8) -> Result<bool, Fault> {
        match opcode {
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                // As Python does: a mark on top goes in place of a value.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => drop(self.marked()?),
            b'2' => {
                let top = self.pop()?;
                self.stack.extend([top, top]);
            }
            b']' => self.push(Node::List(Vec::new())),
            b')' => self.push(Node::Tuple(Vec::new())),
            b'}' => self.push(Node::Dict(Vec::new())),
            0x8f => self.push(Node::Set(Vec::new())),
            b'l' => {
                let parts = self.marked()?;
                self.push(Node::List(parts));
            }
            b't' => {
                let parts = self.marked()?;
                self.push(Node::Tuple(parts));
            }
            0x91 => {
                let parts = self.marked()?;
                self.push(Node::Set(parts));
            }
            b'd' => {
                let pairs = pairs(&self.marked()?)?;
                self.push(Node::Dict(pairs));
            }
            0x85..=0x87 => {
                let mut parts = Vec::with_capacity(3);
                for _ in 0x85..=opcode {
                    parts.push(self.pop()?);
                }
                parts.reverse();
                self.push(Node::Tuple(parts));
            }
            b'a' => {
                let part = self.pop()?;
                self.append(&[part])?;
            }
            b'e' | 0x90 => {
                let parts = self.marked()?;
                self.append(&parts)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(&[key, value])?;
            }
            b'u' => {
                let parts = self.marked()?;
                self.insert(&parts)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Opcodes of the memo.
    fn memorize(&mut self, opcode: u8) -> Result<bool, Fault> {
        let (key, is_kept) = match opcode {
            b'q' => (self.byte()?.into(), true),
            b'r' => (u32::from_le_bytes(self.array()?), true),
            0x94 => (self.memo.len() as u32, true),
            b'h' => (self.byte()?.into(), false),
            b'j' => (u32::from_le_bytes(self.array()?), false),
            _ => return Ok(false),
        };
        if is_kept {
            let top = self.top()?;
            self.memo.insert(key, top);
        } else {
            self.stack.push(*self.memo.get(&key).ok_or(Fault::Memo(key))?);
        }
        Ok(true)
    }

    /// Opcodes by which Python would look up, call and fill.
    fn object(&mut self, opcode: u8) -> Result<bool, Fault> {
        match opcode {
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (module, name) = (self.text_of(module)?, self.text_of(name)?);
                self.global(module, name)?;
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(callable, arguments)?;
            }
            // Keyword arguments: none of PyTorch's classes has them.
            0x92 => {
                let (keywords, arguments, callable) = (self.pop()?, self.pop()?, self.pop()?);
                match self.node(keywords) {
                    Node::Dict(pairs) if pairs.is_empty() => self.call(callable, arguments)?,
                    other => {
                        let (wanted, found) = ("an empty dict", other.kind());
                        return Err(Fault::Kind { wanted, found });
                    }
                }
            }
            b'b' => {
                let (state, object) = (self.pop()?, self.top()?);
                match self.node_mut(object) {
                    Node::Object(object) => object.state = Some(state),
                    other => {
                        let (wanted, found) = ("an object", other.kind());
                        return Err(Fault::Kind { wanted, found });
                    }
                }
            }
            b'Q' => {
                let key = self.pop()?;
                self.push(Node::Persistent(key));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Result<(), Fault> {
        let is_allowed = match self.globals {
            Globals::Any => true,
            Globals::Only(list) => list.contains(&(module, name)),
        };
        if !is_allowed {
            let (module, name) = (module.to_owned(), name.to_owned());
            return Err(Fault::Global { module, name });
        }
        self.push(Node::Global(module, name));
        Ok(())
    }

    fn call(&mut self, callable: Id, arguments: Id) -> Result<(), Fault> {
        let wanted = match (self.node(callable), self.node(arguments)) {
            (Node::Global(..) | Node::Object(_), Node::Tuple(_)) => {
                let (state, items, elements) = (None, Vec::new(), Vec::new());
                let object = Object { callable, arguments, state, items, elements };
                self.push(Node::Object(Box::new(object)));
                return Ok(());
            }
            (Node::Global(..) | Node::Object(_), other) => ("a tuple of arguments", other.kind()),
            (other, _) => ("a global to call", other.kind()),
        };
        Err(Fault::Kind { wanted: wanted.0, found: wanted.1 })
    }

    fn append(&mut self, parts: &[Id]) -> Result<(), Fault> {
        let onto = self.top()?;
        match self.node_mut(onto) {
            Node::List(all) | Node::Set(all) => all.extend(parts),
            Node::Object(object) => object.elements.extend(parts),
            other => return Err(Fault::Kind { wanted: "a list", found: other.kind() }),
        }
        Ok(())
    }

    fn insert(&mut self, parts: &[Id]) -> Result<(), Fault> {
        let pairs = pairs(parts)?;
        let into = self.top()?;
        match self.node_mut(into) {
            Node::Dict(all) => all.extend(pairs),
            Node::Object(object) => object.items.extend(pairs),
            other => return Err(Fault::Kind { wanted: "a dict", found: other.kind() }),
        }
        Ok(())
    }

    fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id as usize]
    }

    fn node_mut(&mut self, id: Id) -> &mut Node<'a> {
        &mut self.nodes[id as usize]
    }

    fn text_of(&self, id: Id) -> Result<&'a str, Fault> {
        match self.node(id) {
            Node::Text(text) => Ok(text),
            other => Err(Fault::Kind { wanted: "a text", found: other.kind() }),
        }
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
        self.places.push(self.begun as u32);
    }

    /// The topmost value above the last mark.
    fn top(&self) -> Result<Id, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.get(floor..).and_then(|above| above.last()).copied().ok_or(Fault::Stack)
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// All values above the last mark, which goes too.
    fn marked(&mut self) -> Result<Vec<Id>, Fault> {
        let floor = self.marks.pop().ok_or(Fault::Mark)?;
        Ok(self.stack.split_off(floor))
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Fault> {
        let rest = &self.bytes[self.at..];
        if len > rest.len() as u64 {
            return Err(Fault::Ends(len - rest.len() as u64));
        }
        self.at += len as usize;
        Ok(&rest[..len as usize])
    }

    /// As many bytes as an integer of `N` bytes before them says.
    fn counted<const N: usize>(&mut self) -> Result<&'a [u8], Fault> {
        let mut len = [0; 8];
        len[..N].copy_from_slice(&self.array::<N>()?);
        self.take(u64::from_le_bytes(len))
    }

    fn text<const N: usize>(&mut self) -> Result<Node<'a>, Fault> {
        let bytes = self.counted::<N>()?;
        std::str::from_utf8(bytes).map(Node::Text).map_err(|_| Fault::Text)
    }

    /// The text up to a line feed, which is passed over.
    fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or(Fault::Ends(1))?;
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|_| Fault::Text)
    }
}

/// Two's complement, little-endian, of any length.
fn integer(mut bytes: &[u8]) -> Node<'_> {
    let is_negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
    // A byte that only repeats the sign says nothing.
    while let [rest @ .., before, last] = bytes
        && *last == if is_negative { 0xff } else { 0 }
        && (before & 0x80 != 0) == is_negative
    {
        bytes = &bytes[..rest.len() + 1];
    }
    if bytes.len() > 8 {
        return Node::Long(bytes);
    }
    let mut all = [if is_negative { 0xff } else { 0 }; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(all))
}

fn old_text(bytes: &[u8]) -> Node<'_> {
    std::str::from_utf8(bytes).map_or(Node::Bytes(bytes), Node::Text)
}

fn pairs(parts: &[Id]) -> Result<Vec<(Id, Id)>, Fault> {
    if !parts.len().is_multiple_of(2) {
        return Err(Fault::Odd);
    }
    Ok(parts.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

#[cfg(test)]
mod tests;
