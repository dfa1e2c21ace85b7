//! How large buckets of gradients are: as configured, or from a table of links, or the default.
//!
//! ```text
//! ranks.bucket_bytes ─────────────────────────────────────────▶ as configured
//! ranks.links: off, or auto that finds nothing ───────────────▶ the default
//!              FILE, or auto: runs/NAME/links.json, the cache ─▶ table ─▶ choose
//! ```
//!
//! [`choose`] is a pure function. What it decides by lies in files, so that no start of a run
//! measures anything. The weights have the same bits with any size.

use std::path::PathBuf;

use bench::collectives::bucket::{Bounds, Decided, bucket};
use bench::collectives::links::{LinkTable, NoCurve};
use train::config::{BUCKET_BYTES, Links, RanksConfig};

use crate::console::{bytes, plural};
use crate::error::CliError;
use crate::links_file;
use crate::run_dir::RunDir;

/// A size and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    pub bytes: usize,
    pub reason: String,
}

impl Buckets {
    fn default_because(why: &str) -> Buckets {
        Buckets { bytes: BUCKET_BYTES, reason: format!("the default: {why}") }
    }
}

/// Why a table that was named cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinksError {
    #[error("ranks.links: {}: {why}; name a table of links, or use auto or off", path.display())]
    Unreadable { path: PathBuf, why: String },
    #[error(
        "ranks.links: {}: {why}; measure here (`muster bench collectives --links FILE`), or use \
         off",
        path.display()
    )]
    NoCurve { path: PathBuf, why: NoCurve },
    #[error(
        "ranks.links: {}: measured on {}, and this run is on {}; measure on as many, or use off",
        path.display(), plural(*measured, "host"), plural(*hosts, "host")
    )]
    Hosts { path: PathBuf, measured: usize, hosts: usize },
}

/// A run, as far as its buckets depend on it.
#[derive(Debug, Clone, Copy)]
struct Site<'a> {
    host: &'a str,
    /// Of the job, as a table counts them: several may be on one machine.
    hosts: usize,
    transport: &'static str,
    ranks: usize,
    gradient_bytes: u64,
    /// Whether buckets are sent while backward computes the next.
    are_hidden: bool,
}

/// A table and where it lies.
struct Table {
    path: PathBuf,
    links: LinkTable,
}

/// Where buckets are sent while backward goes on, at most this part of the gradients is left when
/// it ends.
const LEFT_AT_THE_END: u64 = 4;

/// Decides, and reads what that needs, for a run on so many hosts over `transport`, as groups
/// name theirs.
///
/// # Errors
/// The table that the config names cannot be read or used.
pub fn resolve(
    ranks: &RanksConfig,
    run: &RunDir,
    (hosts, transport): (usize, &'static str),
    gradient_bytes: u64,
) -> Result<Buckets, CliError> {
    let host = links_file::host_name();
    let site = Site {
        host: &host,
        hosts,
        transport,
        ranks: ranks.count,
        gradient_bytes,
        are_hidden: ranks.optimizer_device.kind().is_some(),
    };
    if let Some(bytes) = ranks.bucket_bytes {
        let reason = "as configured (ranks.bucket_bytes)".to_owned();
        return Ok(Buckets { bytes, reason });
    }
    match &ranks.links {
        Links::Off => Ok(Buckets::default_because("ranks.links is off")),
        Links::File(path) => {
            let links = links_file::read(path)
                .map_err(|why| LinksError::Unreadable { path: path.clone(), why })?;
            Ok(choose(&Table { path: path.clone(), links }, site)?)
        }
        Links::Auto if site.ranks == 1 => Ok(Buckets::default_because("one rank sends nothing")),
        Links::Auto => Ok(auto(run, site)),
    }
}

/// From the first table of this place; one that cannot be used is told of, and no mistake.
fn auto(run: &RunDir, site: Site) -> Buckets {
    let cached = links_file::cache().filter(|_| site.hosts == 1);
    let cached =
        cached.map(|cache| cache.join(links_file::name(site.host, site.transport, site.ranks)));
    let is_there = |path: &PathBuf| std::fs::symlink_metadata(path).is_ok();
    let Some(path) = std::iter::once(run.links()).chain(cached).find(is_there) else {
        return Buckets::default_because(&nothing_known(site));
    };
    let chosen = links_file::read(&path)
        .map_err(|why| LinksError::Unreadable { path: path.clone(), why })
        .and_then(|links| {
            let table = Table { path, links };
            is_of_this_place(&table, site)
                .map_err(|why| LinksError::Unreadable { path: table.path.clone(), why })?;
            choose(&table, site)
        });
    chosen.unwrap_or_else(|error| Buckets::default_because(&error.to_string()))
}

fn nothing_known(Site { transport, ranks, hosts, .. }: Site) -> String {
    let here = format!("no table of links for {} over {transport}", plural(ranks, "rank"));
    match hosts {
        1 => format!("{here}; `muster bench collectives --links auto` makes one"),
        _ => format!("{here}; several hosts read one that ranks.links names"),
    }
}

/// Tables that nobody named must be of this very place.
fn is_of_this_place(table: &Table, site: Site) -> Result<(), String> {
    let hosts = &table.links.hosts;
    if !hosts.iter().any(|host| host.name == site.host) {
        let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
        return Err(format!("measured on {}, not on {}", names.join(", "), site.host));
    }
    let has_ranks = |ranks| {
        let gradients = table.links.gradients(ranks, site.transport);
        gradients.is_ok_and(|curve| curve.key.ranks == Some(ranks))
    };
    match has_ranks(site.ranks) {
        true => Ok(()),
        false => Err(format!("not measured among {}", plural(site.ranks, "rank"))),
    }
}

/// The size that a table says.
///
/// # Errors
/// It says nothing of this transport, or is of another number of hosts.
fn choose(table: &Table, site: Site) -> Result<Buckets, LinksError> {
    let Table { path, links } = table;
    if links.hosts.len() != site.hosts {
        let (path, measured) = (path.clone(), links.hosts.len());
        return Err(LinksError::Hosts { path, measured, hosts: site.hosts });
    }
    let no_curve = |why| LinksError::NoCurve { path: path.clone(), why };
    let curve = links.gradients(site.ranks, site.transport).map_err(no_curve)?;
    let (Some(fit), Some(reach)) = (&curve.fit, &curve.reach) else {
        return Err(no_curve(NoCurve::Sums));
    };
    let share = site.gradient_bytes / if site.are_hidden { LEFT_AT_THE_END } else { 1 };
    let chosen = bucket(fit, reach, Bounds { window_us: None, most_bytes: Some(share.max(1)) });
    let size = usize::try_from(chosen.bytes).unwrap_or(usize::MAX);
    let why = match chosen.decided {
        Decided::Most if site.are_hidden => "a quarter of the gradients".to_owned(),
        Decided::Most => "all gradients".to_owned(),
        Decided::Half => format!("half of the peak of {}", curve.key.op),
        Decided::Peak | Decided::Window => format!("90 % of the peak of {}", curve.key.op),
    };
    let peak = format!("{:.2} GB/s at {}", reach.peak_busbw_gb_per_s, bytes(reach.peak_bytes));
    let asides = asides(table, curve.key.ranks, site, reach.saturated);
    let reason = format!("{why}, {peak} ({}{asides})", path.display());
    Ok(Buckets { bytes: size.max(1), reason })
}

/// Differences between the table's measurement and this run, as clauses.
fn asides(table: &Table, measured: Option<usize>, site: Site, saturated: bool) -> String {
    let mut asides = String::new();
    if let Some(measured) = measured.filter(|&measured| measured != site.ranks) {
        asides += &format!("; of {}, the nearest that was measured", plural(measured, "rank"));
    }
    let hosts = &table.links.hosts;
    if !hosts.iter().any(|host| host.name == site.host) {
        let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
        asides += &format!("; measured on {}", names.join(", "));
    }
    if !saturated {
        asides += "; still rising at the largest size that was measured";
    }
    asides
}

impl From<LinksError> for CliError {
    fn from(error: LinksError) -> CliError {
        CliError::mistake(error)
    }
}

#[cfg(test)]
mod tests;
