//! The configs that ship, and the one that `muster config default` prints.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn muster(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_muster")).args(args).current_dir(dir).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn every_config_that_ships_is_right() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.txt"), "text").unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        let output = muster(
            dir.path(),
            &["config", "check", path.to_str().unwrap(), "--set", "data.files=a.txt"],
        );
        assert!(stdout(&output).contains(": ok"), "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 3);
}

#[test]
fn the_default_config_is_right_but_for_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let default = stdout(&muster(dir.path(), &["config", "default"]));
    std::fs::write(dir.path().join("run.yaml"), &default).unwrap();
    std::fs::write(dir.path().join("a.txt"), "text").unwrap();
    let sets = ["--set", "data.files=a.txt", "--set", "model.preset=tiny-moe"];
    let args = [&["config", "check", "run.yaml"], sets.as_slice()].concat();
    assert!(stdout(&muster(dir.path(), &args)).contains("run.yaml: ok"));
    let long: Vec<&str> = default.lines().filter(|line| line.chars().count() > 100).collect();
    assert!(long.is_empty(), "too long for a screen: {long:?}");
}

#[test]
fn the_schema_is_json_and_names_every_section() {
    let output = muster(&root(), &["config", "schema"]);
    let schema: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    for section in ["model", "data", "batch", "optimizer", "train", "checkpoint", "ranks"] {
        assert!(schema["properties"][section]["description"].is_string(), "{section}");
    }
}

/// `moe.yaml` says that it has every switch in sight. Keys of one name in several sections must
/// stand there as often; those of the alternatives of a choice (`cosine`) are not asked for.
#[test]
fn the_example_has_every_key() {
    let output = muster(&root(), &["config", "schema"]);
    let schema: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let mut keys = Vec::new();
    collect_keys(&schema, &schema, "", &mut keys);
    assert!(keys.iter().any(|path| path == "optimizer.rules.muon.lr"), "{keys:?}");
    let example = std::fs::read_to_string(root().join("configs/moe.yaml")).unwrap();
    let words: Vec<&str> =
        example.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c))).collect();
    let name = |path: &str| path.rsplit('.').next().unwrap().to_string();
    for path in &keys {
        let wanted = keys.iter().filter(|other| name(other) == name(path)).count();
        let found = words.iter().filter(|word| **word == format!("{}:", name(path))).count();
        assert!(found >= wanted, "{path}: its name stands {found} times, not {wanted}");
    }
}

/// The keys below `schema` with their sections, through lists and what may be left out.
fn collect_keys(
    root: &serde_json::Value,
    schema: &serde_json::Value,
    at: &str,
    out: &mut Vec<String>,
) {
    if let Some(reference) = schema["$ref"].as_str() {
        return collect_keys(root, root.pointer(&reference[1..]).unwrap(), at, out);
    }
    for form in schema["anyOf"].as_array().into_iter().flatten().chain(schema.get("items")) {
        collect_keys(root, form, at, out);
    }
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        collect_keys(root, value, &path, out);
        out.push(path);
    }
}

/// The quickstart reads sources that `cargo run` has unpacked: crates that the binary itself is
/// built from, and in one version, as sources of a version that only tests use are not there.
#[test]
fn the_quickstart_reads_what_a_plain_build_has_unpacked() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let built = built_from(&lock);
    let config = std::fs::read_to_string(root().join("configs/quickstart.yaml")).unwrap();
    let crates: Vec<&str> = config
        .lines()
        .skip_while(|line| line.trim() != "crates:")
        .skip(1)
        .map_while(|line| line.trim().strip_prefix("- "))
        .collect();
    assert!(crates.len() >= 10, "{crates:?}");
    for name in crates {
        let versions = lock.matches(&format!("[[package]]\nname = \"{name}\"\n")).count();
        assert_eq!(versions, 1, "{name}: versions in Cargo.lock");
        assert!(built.contains(name), "{name} is not a dependency of the binary");
    }
}

/// Names of all packages that the binary needs: the lock file's edges, but from our own crates
/// only the ordinary dependencies.
fn built_from(lock: &str) -> BTreeSet<String> {
    let mut pending = vec!["muster".to_string()];
    let mut seen = BTreeSet::new();
    while let Some(name) = pending.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let manifest = root().join("crates").join(&name).join("Cargo.toml");
        match std::fs::read_to_string(manifest) {
            Ok(manifest) => pending.extend(ordinary_dependencies(&manifest)),
            Err(_) => pending.extend(locked_dependencies(lock, &name)),
        }
    }
    seen
}

fn ordinary_dependencies(manifest: &str) -> Vec<String> {
    let section = manifest.lines().skip_while(|line| line.trim() != "[dependencies]").skip(1);
    let lines = section.take_while(|line| !line.starts_with('['));
    let lines = lines.filter(|line| !line.contains("optional = true"));
    lines
        .filter_map(|line| line.split(['.', '=', ' ']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(str::to_string)
        .collect()
}

fn locked_dependencies(lock: &str, name: &str) -> Vec<String> {
    let head = format!("name = \"{name}\"\n");
    let packages = lock.split("[[package]]").filter(|package| package.contains(&head));
    let lines = packages
        .flat_map(|package| package.lines().skip_while(|line| *line != "dependencies = [").skip(1));
    lines
        .filter_map(|line| line.trim().strip_prefix('"'))
        .filter_map(|line| line.split(['"', ' ']).next())
        .map(str::to_string)
        .collect()
}
