//! Imports of a crate's modules that lead back to where they began.
//!
//! A module is a file. It imports another where a path in it, that begins with `crate`, `super` or
//! `self`, leads there, through re-exports to the file that has the item. What does not count:
//!
//!   * paths to the root of the crate, which has all modules below it;
//!   * paths to the modules below: whoever has `mod a;` may use `a`, and export it again;
//!   * paths to and from `error`, where errors of all modules stand;
//!   * tests.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Item, UseTree};

use super::rust::{is_test, parse};
use super::source::{Finding, Source};

type Path = Vec<String>;

/// Imports between modules that are part of a circle, of all crates.
pub fn find(sources: &[Source]) -> Vec<Finding> {
    let mut found = Vec::new();
    for root in sources {
        let Some((name, "lib.rs" | "main.rs")) = root.in_src() else { continue };
        let mut modules = Modules { all: BTreeMap::new(), sources };
        modules.add("", root, &format!("crates/{name}/src"));
        let imports = modules.imports();
        for (from, to) in &imports {
            if leads(&imports, to, from) {
                let source = modules.all[from].source;
                found.push(Finding::of(source, 1, format!("`{from}` imports `{to}`, in a circle")));
            }
        }
    }
    found
}

/// Whether one comes from `from` to `to` along the imports.
fn leads(imports: &BTreeSet<(String, String)>, from: &str, to: &str) -> bool {
    let (mut open, mut seen) = (vec![from], BTreeSet::new());
    while let Some(at) = open.pop() {
        if at == to {
            return true;
        }
        if seen.insert(at) {
            open.extend(imports.iter().filter(|(from, _)| from == at).map(|(_, to)| &**to));
        }
    }
    false
}

struct Module<'a> {
    source: &'a Source,
    file: syn::File,
    /// Names of its own items.
    items: BTreeSet<String>,
    /// By name, the path that the module imports under it; `*` in place of a name is apart.
    names: BTreeMap<String, Path>,
    globs: Vec<Path>,
}

struct Modules<'a> {
    /// By path from the root (`tcp::link`), which is itself empty.
    all: BTreeMap<String, Module<'a>>,
    sources: &'a [Source],
}

impl<'a> Modules<'a> {
    /// A module and all below it, whose files lie in `dir`.
    fn add(&mut self, path: &str, source: &'a Source, dir: &str) {
        let file = parse(source);
        let mut module = Module {
            source,
            items: BTreeSet::new(),
            names: BTreeMap::new(),
            globs: Vec::new(),
            file: syn::File { shebang: None, attrs: Vec::new(), items: Vec::new() },
        };
        for item in &file.items {
            match item {
                Item::Use(item) => {
                    flatten(&item.tree, &mut Vec::new(), &mut |path, name| match name {
                        Some(name) => drop(module.names.insert(name, path)),
                        None => module.globs.push(path),
                    })
                }
                Item::Mod(item) if item.content.is_none() && !is_test(&item.attrs) => {
                    let name = item.ident.to_string();
                    let below = format!("{dir}/{name}");
                    let files = [format!("{below}.rs"), format!("{below}/mod.rs")];
                    let source = self.sources.iter().find(|source| files.contains(&source.path));
                    if let Some(source) = source {
                        self.add(&join(path, &name), source, &below);
                    }
                }
                item => module.items.extend(name_of(item)),
            }
        }
        module.file = file;
        self.all.insert(path.to_owned(), module);
    }

    /// Pairs of modules of which the first imports the second.
    fn imports(&self) -> BTreeSet<(String, String)> {
        let mut imports = BTreeSet::new();
        for (from, module) in &self.all {
            let mut paths = Paths { inner: 0, all: Vec::new() };
            paths.visit_file(&module.file);
            for path in paths.all {
                let to = self.resolve(from, &path, 0);
                let is_below = from.is_empty() || to.starts_with(&format!("{from}::"));
                let is_error =
                    [from, &to].iter().any(|path| path.rsplit("::").next() == Some("error"));
                if to != *from && !to.is_empty() && !is_below && !is_error {
                    imports.insert((from.clone(), to));
                }
            }
        }
        imports
    }

    /// The module that has the item which `path` means in module `at`.
    fn resolve(&self, at: &str, path: &[String], depth: usize) -> String {
        let (mut at, mut rest) = (at.to_owned(), path);
        match rest.first().map(String::as_str) {
            Some("crate") => (at, rest) = (String::new(), &rest[1..]),
            Some("self") => rest = &rest[1..],
            _ => {}
        }
        while let Some((name, behind)) = rest.split_first() {
            if name == "super" {
                at = at.rsplit_once("::").map_or(String::new(), |(parent, _)| parent.to_owned());
            } else if self.all.contains_key(&join(&at, name)) {
                at = join(&at, name);
            } else {
                return self.exported(&at, name, behind, depth).unwrap_or(at);
            }
            rest = behind;
        }
        at
    }

    /// Where a name leads that module `at` imports itself.
    fn exported(&self, at: &str, name: &str, behind: &[String], depth: usize) -> Option<String> {
        let module = &self.all[at];
        if module.items.contains(name) || depth > 8 {
            return None;
        }
        if let Some(path) = module.names.get(name) {
            return self.relative(at, &[path, behind].concat(), depth);
        }
        module.globs.iter().find_map(|glob| {
            let to = self.relative(at, glob, depth)?;
            let has = self.all[&to].items.contains(name) || self.all[&to].names.contains_key(name);
            let path: Path =
                std::iter::once(name.to_owned()).chain(behind.iter().cloned()).collect();
            (to != at && has).then(|| self.resolve(&to, &path, depth + 1))
        })
    }

    /// Where a path of a `use` in module `at` leads; none to another crate.
    fn relative(&self, at: &str, path: &[String], depth: usize) -> Option<String> {
        let first = path.first()?;
        let is_own = ["crate", "self", "super"].contains(&first.as_str())
            || self.all.contains_key(&join(at, first));
        is_own.then(|| self.resolve(at, path, depth + 1))
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") }
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Fn(item) => &item.sig.ident,
        Item::Struct(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Union(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Const(item) => &item.ident,
        Item::Static(item) => &item.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        _ => return None,
    };
    Some(name.to_string())
}

/// Calls `tell` with each path of a `use`, and the name that it has in the module; none of a `*`.
fn flatten(tree: &UseTree, path: &mut Path, tell: &mut impl FnMut(Path, Option<String>)) {
    match tree {
        UseTree::Path(tree) => {
            path.push(tree.ident.to_string());
            flatten(&tree.tree, path, tell);
            path.pop();
        }
        UseTree::Name(tree) if tree.ident == "self" => tell(path.clone(), path.last().cloned()),
        UseTree::Name(tree) => {
            let name = tree.ident.to_string();
            tell([&path[..], std::slice::from_ref(&name)].concat(), Some(name));
        }
        UseTree::Rename(tree) => {
            let (name, own) = (tree.ident.to_string(), tree.rename.to_string());
            let whole = if name == "self" { path.clone() } else { [&path[..], &[name]].concat() };
            tell(whole, Some(own));
        }
        UseTree::Glob(_) => tell(path.clone(), None),
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, path, tell)),
    }
}

/// Paths of a file that begin with `crate`, `super` or `self`, tests left out.
struct Paths {
    /// Modules within the file around the place that is visited.
    inner: usize,
    all: Vec<Path>,
}

impl Paths {
    fn add(&mut self, mut path: Path) {
        // From within, the first `super`s lead to the file itself.
        let mut inner = self.inner;
        while inner > 0 && path.first().is_some_and(|name| name == "super") {
            path.remove(0);
            inner -= 1;
            if path.first().is_none_or(|name| name != "super") {
                path.insert(0, "self".to_owned());
            }
        }
        let first = path.first().map(String::as_str);
        if matches!(first, Some("crate" | "super")) || self.inner == 0 && first == Some("self") {
            self.all.push(path);
        }
    }

    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Path = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.add(std::mem::take(&mut path));
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                token => {
                    self.add(std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = token {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.add(path);
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.inner += 1;
        visit::visit_item_mod(self, item);
        self.inner -= 1;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        flatten(&item.tree, &mut Vec::new(), &mut |path, _| self.add(path));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
    }

    /// `pub(super)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}

#[cfg(test)]
fn circles(files: &[(&str, &str)]) -> Vec<String> {
    let file = |(name, text): &(&str, &str)| Source::new(&format!("crates/x/src/{name}"), text);
    let found = find(&files.iter().map(file).collect::<Vec<_>>());
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn a_circle_of_files_is_found_through_re_exports() {
    let lib = ("lib.rs", "mod a; mod b; mod c; pub use c::Sum;");
    let both = |c: &str| {
        let a = ("a/mod.rs", "mod d; use crate::b; pub use d::*;");
        let (b, d) = (("b.rs", "fn f() { g(crate::Sum::new()) }"), ("a/d.rs", "pub struct D;"));
        circles(&[lib, a, b, d, ("c.rs", c)])
    };
    assert_eq!(both("pub struct Sum;"), [""; 0]);
    assert_eq!(
        both("pub struct Sum(crate::a::D);\n"),
        [""; 0],
        "a re-export leads to the file that has the item"
    );
    let found = both("use super::b::f; pub struct Sum;");
    assert_eq!(found[0], "crates/x/src/b.rs:1 `b` imports `c`, in a circle");
    assert_eq!(found[1], "crates/x/src/c.rs:1 `c` imports `b`, in a circle");
    assert_eq!(both("add! { crate::b::f } pub struct Sum;").len(), 2);
}

#[test]
fn circles_that_do_not_count_are_left_out() {
    let lib = ("lib.rs", "mod a; mod error; pub fn f() {}");
    let parent = "mod b; use b::B; fn f() { crate::a::b::g() } struct A;";
    let child = "use super::A; use crate::f; pub(super) struct B;";
    assert_eq!(circles(&[lib, ("a.rs", parent), ("a/b.rs", child)]), [""; 0]);
    let error = ("error.rs", "use crate::a::A;");
    assert_eq!(circles(&[lib, ("a.rs", "use crate::error::E;"), error]), [""; 0]);
    let two = ("lib.rs", "mod a; mod b;");
    let tests = "#[cfg(test)]\nmod tests { use crate::b::B; }";
    assert_eq!(circles(&[two, ("a.rs", tests), ("b.rs", "use crate::a::A;")]), [""; 0]);
    let inner = "mod inner { use super::super::b::B; }";
    assert_eq!(circles(&[two, ("a.rs", inner), ("b.rs", "use crate::a::A;")]).len(), 2);
}
