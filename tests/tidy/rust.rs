//! Rules that need Rust's grammar: long functions, and public items that nobody outside names.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Block, ImplItem, Item, Signature, Type, Visibility};

use super::source::{Finding, Source};

const LINES: usize = 70;

/// Functions of more than 70 lines, from `fn` to the closing brace.
pub fn long_functions(sources: &[Source]) -> Vec<Finding> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        let mut functions = Functions { source, found: &mut found };
        functions.visit_file(&parse(source));
    }
    found
}

pub fn parse(source: &Source) -> syn::File {
    syn::parse_file(&source.text).unwrap_or_else(|error| panic!("{}: {error}", source.path))
}

struct Functions<'a> {
    source: &'a Source,
    found: &'a mut Vec<Finding>,
}

impl Functions<'_> {
    fn measure(&mut self, signature: &Signature, body: &Block) {
        let begin = signature.fn_token.span.start().line;
        let lines = body.brace_token.span.close().end().line - begin + 1;
        if lines > LINES {
            let what = format!("`{}` has {lines} lines", signature.ident);
            self.found.push(Finding::of(self.source, begin, what));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.measure(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.measure(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.measure(&item.sig, body);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

/// Items and methods that are `pub` in a file of a library below its root, and whose names occur in
/// no Rust file outside of its `src/`. Programs are left out: the compiler sees what they leave
/// unused. So are types that another public item shows in its signature or its fields: whoever uses
/// that gets them without their names.
pub fn unused_public(sources: &[Source]) -> Vec<Finding> {
    let rust: Vec<&Source> = sources.iter().filter(|source| source.is_rust()).collect();
    let library = |source: &Source| source.in_src().map(|(name, _)| name.to_owned());
    // By name, the libraries in whose `src/` it occurs; `None` stands for all other files.
    let mut named: BTreeMap<String, BTreeSet<Option<String>>> = BTreeMap::new();
    for source in &rust {
        for name in identifiers(&source.text) {
            named.entry(name).or_default().insert(library(source));
        }
    }
    let libraries: BTreeSet<&str> = rust
        .iter()
        .filter_map(|source| source.in_src())
        .filter_map(|(name, file)| (file == "lib.rs").then_some(name))
        .collect();
    // By library, the types that its public items show.
    let mut shown: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for source in &rust {
        if let Some((own, _)) = source.in_src() {
            let mut types = ShownTypes { own: None, all: shown.remove(own).unwrap_or_default() };
            parse(source).items.iter().for_each(|item| types.add(item));
            shown.insert(own, types.all);
        }
    }
    let mut found = Vec::new();
    for source in rust {
        let Some((own, file)) = source.in_src() else { continue };
        let is_root = file == "lib.rs" || file == "main.rs";
        let is_test = file.contains("tests/") || file.ends_with("tests.rs");
        if !libraries.contains(own) || is_root || is_test {
            continue;
        }
        for name in public_names(&parse(source).items) {
            let users = named.get(&name.to_string());
            if shown[own].contains(&name.to_string()) {
                continue;
            }
            if !users.is_some_and(|users| users.iter().any(|user| user.as_deref() != Some(own))) {
                let what = format!("`{name}` is public, and nobody outside names it");
                found.push(Finding::of(source, name.span().start().line, what));
            }
        }
    }
    found
}

/// All names in the code of a file, without those in comments and strings.
pub fn identifiers(text: &str) -> BTreeSet<String> {
    identifiers_in(text.parse().unwrap_or_default())
}

fn identifiers_in(tokens: TokenStream) -> BTreeSet<String> {
    fn collect(tokens: TokenStream, names: &mut BTreeSet<String>) {
        for token in tokens {
            match token {
                TokenTree::Ident(name) => drop(names.insert(name.to_string())),
                TokenTree::Group(group) => collect(group.stream(), names),
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }
    let mut names = BTreeSet::new();
    collect(tokens, &mut names);
    names
}

/// Names of types in signatures and fields of public items.
struct ShownTypes {
    /// The type whose methods are visited, which shows itself by them to nobody.
    own: Option<String>,
    all: BTreeSet<String>,
}

impl ShownTypes {
    fn add(&mut self, item: &Item) {
        let is_public = |vis: &Visibility| matches!(vis, Visibility::Public(_));
        match item {
            Item::Fn(item) if is_public(&item.vis) => self.visit_signature(&item.sig),
            Item::Struct(item) if is_public(&item.vis) => {
                let shown = item.fields.iter().filter(|field| is_public(&field.vis));
                shown.for_each(|field| self.visit_type(&field.ty));
            }
            Item::Enum(item) if is_public(&item.vis) => {
                item.variants.iter().for_each(|variant| self.visit_fields(&variant.fields));
            }
            Item::Trait(item) if is_public(&item.vis) => self.visit_item_trait(item),
            Item::Type(item) if is_public(&item.vis) => self.visit_type(&item.ty),
            Item::Const(item) if is_public(&item.vis) => self.visit_type(&item.ty),
            Item::Static(item) if is_public(&item.vis) => self.visit_type(&item.ty),
            // It may make items that are public.
            Item::Macro(item) => {
                let names = identifiers_in(item.mac.tokens.clone());
                self.all
                    .extend(names.into_iter().filter(|name| name.starts_with(char::is_uppercase)));
            }
            Item::Impl(item) if !is_test(&item.attrs) => self.add_impl(item),
            Item::Mod(item) if !is_test(&item.attrs) => {
                let inner = item.content.as_ref().map_or(&[][..], |(_, items)| items);
                inner.iter().for_each(|item| self.add(item));
            }
            _ => {}
        }
    }

    fn add_impl(&mut self, block: &syn::ItemImpl) {
        let own = match &*block.self_ty {
            Type::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()),
            _ => None,
        };
        let before = std::mem::replace(&mut self.own, own);
        for item in &block.items {
            let is_shown =
                |vis: &Visibility| block.trait_.is_some() || matches!(vis, Visibility::Public(_));
            match item {
                ImplItem::Fn(item) if is_shown(&item.vis) => self.visit_signature(&item.sig),
                ImplItem::Const(item) if is_shown(&item.vis) => self.visit_type(&item.ty),
                ImplItem::Type(item) if is_shown(&item.vis) => self.visit_type(&item.ty),
                _ => {}
            }
        }
        self.own = before;
    }
}

impl<'ast> Visit<'ast> for ShownTypes {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let name = path.segments.last().map(|last| last.ident.to_string());
        self.all.extend(name.filter(|name| self.own.as_ref() != Some(name)));
        visit::visit_path(self, path);
    }

    fn visit_block(&mut self, _: &'ast Block) {}
}

fn public_names(items: &[Item]) -> Vec<Ident> {
    let mut names = Vec::new();
    for item in items {
        let (vis, name) = match item {
            // One with an ABI is called by its symbol.
            Item::Fn(item) if item.sig.abi.is_none() => (&item.vis, &item.sig.ident),
            Item::Struct(item) => (&item.vis, &item.ident),
            Item::Enum(item) => (&item.vis, &item.ident),
            Item::Union(item) => (&item.vis, &item.ident),
            Item::Trait(item) => (&item.vis, &item.ident),
            Item::Type(item) => (&item.vis, &item.ident),
            Item::Const(item) => (&item.vis, &item.ident),
            Item::Static(item) => (&item.vis, &item.ident),
            Item::Impl(item) => {
                names.extend(item.items.iter().filter_map(public_in_impl));
                continue;
            }
            Item::Mod(item) if matches!(item.vis, Visibility::Public(_)) => {
                let inner = item.content.as_ref().map_or(&[][..], |(_, items)| items);
                names.extend(public_names(inner));
                continue;
            }
            _ => continue,
        };
        if matches!(vis, Visibility::Public(_)) {
            names.push(name.clone());
        }
    }
    names
}

fn public_in_impl(item: &ImplItem) -> Option<Ident> {
    let (vis, name) = match item {
        ImplItem::Fn(item) => (&item.vis, &item.sig.ident),
        ImplItem::Const(item) => (&item.vis, &item.ident),
        _ => return None,
    };
    matches!(vis, Visibility::Public(_)).then(|| name.clone())
}

/// Whether an item is there in tests alone: `#[cfg(test)]`, with others or without.
pub fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        let arguments = attribute.meta.require_list().map(|list| list.tokens.to_string());
        let arguments = arguments.unwrap_or_default();
        arguments == "test" || arguments.starts_with("all (test")
    })
}

#[test]
fn a_long_function_is_found_wherever_it_is() {
    let body = "    let _ = 1;\n".repeat(69);
    let found = |text: &str| -> Vec<String> {
        long_functions(&[Source::new("a.rs", text)]).iter().map(ToString::to_string).collect()
    };
    let ends = |body: &str| format!("/// Sums.\n#[test]\nfn a() {{\n{body}}}\n");
    assert_eq!(found(&ends(&body)), ["a.rs:3 `a` has 71 lines"]);
    assert_eq!(found(&ends(&body[15..])), [""; 0]);
    let method = format!("impl A {{\nfn b() {{\n{body}}}\n}}\ntrait C {{\nfn d() {{\n{body}}}\n}}");
    assert_eq!(found(&method), ["a.rs:2 `b` has 71 lines", "a.rs:75 `d` has 71 lines"]);
    let inner = format!("mod m {{ fn o() {{ fn i() {{\n{body}\n}} }} }}");
    assert_eq!(found(&inner), ["a.rs:1 `o` has 72 lines", "a.rs:1 `i` has 72 lines"]);
}

#[test]
fn a_public_item_that_nobody_names_is_found() {
    let text = "//! `Unused` `B`\npub struct Used;\npub struct Unused;\npub(crate) struct Own;\n\
                impl Used { pub fn called(&self) {} pub fn idle(&self) {} fn own(&self) {} }\n\
                #[cfg(test)]\nmod tests { pub fn help() {} }\n";
    let library = |user: &str| {
        [
            Source::new("crates/a/src/lib.rs", "mod b;\npub use b::{Unused, Used};\npub fn f() {}"),
            Source::new("crates/a/src/b.rs", text),
            Source::new("crates/a/tests/c.rs", user),
            Source::new("crates/p/src/main.rs", "mod q;\nfn main() {}"),
            Source::new("crates/p/src/q.rs", "pub struct OfAProgram;"),
        ]
    };
    let found = |user: &str| -> Vec<String> {
        unused_public(&library(user)).iter().map(ToString::to_string).collect()
    };
    let idle = "crates/a/src/b.rs:5 `idle` is public, and nobody outside names it";
    let unused = "crates/a/src/b.rs:3 `Unused` is public, and nobody outside names it";
    // A comment or a string names nothing.
    let user = "// Unused\nfn f() { a::Used.called(); let _ = \"Unused\"; }";
    assert_eq!(found(user), [unused, idle]);
    assert_eq!(found("fn f(x: a::Unused) { a::Used.called(); x.idle() }"), [""; 0]);
}

#[test]
fn types_that_public_items_show_are_used_by_whoever_uses_those() {
    let text = "pub struct Used { pub field: Field, own: Own }\npub struct Field;\n\
                pub struct Own;\npub struct Result;\npub struct Itself;\n\
                impl Used { pub fn called(&self) -> Option<Result> { None::<Own> } }\n\
                impl Itself { pub fn called() -> Itself {} }\n";
    let sources = [
        Source::new("crates/a/src/lib.rs", "mod b;"),
        Source::new("crates/a/src/b.rs", text),
        Source::new("crates/a/tests/c.rs", "fn f() { a::Used::called() }"),
    ];
    let found: Vec<String> = unused_public(&sources).iter().map(ToString::to_string).collect();
    let unused = |name: &str, line: usize| {
        format!("crates/a/src/b.rs:{line} `{name}` is public, and nobody outside names it")
    };
    assert_eq!(found, [unused("Own", 3), unused("Itself", 5)]);
}
