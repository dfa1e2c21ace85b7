//! Who came and is none of the job's, as people are told of it.
//!
//! Anyone may come to the port, as often and as what it likes. So what is kept is bounded, and has
//! places of its own for whatever a stranger cannot choose freely; whoever says a lot hides no more
//! than its like:
//!
//! ```text
//! kind            another job, secret, protocol; no TLS, by its fault; hosts that are awaited and
//!                 cannot prove themselves; of those with another secret, the ones that claim to
//!                 be somebody who is awaited
//!   address       HOSTS of each kind: what comes from one address hides no other
//!     claim       CLAIMS of each address: whoever is told once more is told with the same advice
//! ```
//!
//! The gap that is left: who has as many addresses as that, and knows whom the job waits for, can
//! keep later ones of the same kind from being named. That there are more is said even then.

use std::mem::Discriminant;
use std::net::{IpAddr, Ipv6Addr};

use super::protocol::cut_name;
use crate::Lack;
use crate::error::SAME_SECRET;
use crate::tls::TlsFault;

/// Addresses that are told of one kind.
const HOSTS: usize = 4;
/// Claims that are told of one kind and one address.
const CLAIMS: usize = 4;
/// How many are told to whoever waits in vain: more than there are kinds.
const LISTED: usize = 16;

/// Why somebody is none of the job's.
#[derive(Debug, Clone)]
pub(super) enum Why {
    /// It has the secret.
    Job(String),
    /// `is_awaited`: as what it claims to be somebody is awaited.
    Secret {
        claimed: String,
        is_awaited: bool,
    },
    Protocol(u32),
    Tls(TlsFault),
    /// A host that is awaited, as it says, will not start and cannot prove that it is that host.
    Lacks {
        node: usize,
        lack: Lack,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Job,
    Awaited,
    Secret,
    Protocol,
    /// The times in a fault pass, so who comes again is not told anew.
    Tls(Discriminant<TlsFault>),
    Lacks,
}

impl Why {
    fn kind(&self) -> Kind {
        match self {
            Why::Job(_) => Kind::Job,
            Why::Secret { is_awaited: true, .. } => Kind::Awaited,
            Why::Secret { is_awaited: false, .. } => Kind::Secret,
            Why::Protocol(_) => Kind::Protocol,
            Why::Tls(fault) => Kind::Tls(fault.kind()),
            Why::Lacks { .. } => Kind::Lacks,
        }
    }

    /// Who it is, and what to do unless that says it.
    fn told(self, from: IpAddr) -> (String, &'static str) {
        match self {
            Why::Job(job) => (
                format!("a worker of job `{job}` from {from}"),
                "see where it was started, and with what rendezvous address",
            ),
            Why::Secret { claimed, .. } => {
                (format!("{claimed} from {from}, which has another secret"), SAME_SECRET)
            }
            Why::Protocol(got) => (
                format!("a worker that speaks protocol {got} from {from}"),
                "use the same build everywhere",
            ),
            Why::Tls(fault) => (format!("a process from {from}, which {fault}"), ""),
            Why::Lacks { node, lack } => {
                let fault = TlsFault::Lacks(lack);
                (format!("node {node} from {from}, which {fault}"), "")
            }
        }
    }
}

struct Stranger {
    kind: Kind,
    /// Of a host that says that it will not start.
    node: Option<usize>,
    from: IpAddr,
    who: String,
}

/// Those who were turned away.
#[derive(Default)]
pub(super) struct Strangers {
    kept: Vec<Stranger>,
    /// There were others.
    are_more: bool,
    /// Lines about strangers that people have not heard yet.
    news: Vec<String>,
}

impl Strangers {
    /// The line that people are told of it, if they have not heard it before.
    pub(super) fn turn_away(&mut self, from: IpAddr, why: Why) -> Option<String> {
        let (kind, is_tls) = (why.kind(), matches!(why, Why::Tls(_)));
        let node = if let Why::Lacks { node, .. } = &why { Some(*node) } else { None };
        let (mut who, advice) = why.told(from);
        cut_name(&mut who);
        let alike = || self.kept.iter().filter(|stranger| stranger.kind == kind);
        let known = alike().filter(|stranger| host(stranger.from) == host(from)).count();
        let is_it = |stranger: &Stranger| stranger.from == from && (is_tls || stranger.who == who);
        if alike().any(is_it) {
            return None;
        }
        let mut hosts: Vec<IpAddr> = alike().map(|stranger| host(stranger.from)).collect();
        hosts.sort_unstable();
        hosts.dedup();
        let has_room = if known > 0 { known < CLAIMS } else { hosts.len() < HOSTS };
        if has_room {
            let advice = if advice.is_empty() { String::new() } else { format!("; {advice}") };
            let text = format!("turned away {who}{advice}");
            self.news.push(text.clone());
            self.kept.push(Stranger { kind, node, from, who });
            return Some(text);
        }
        if !std::mem::replace(&mut self.are_more, true) {
            let text = "turned away more than are named one by one; see who else reaches this port";
            self.news.push(text.to_owned());
        }
        None
    }

    /// A host has come: it may have said before, or another in its name, that it would not.
    pub(super) fn has_come(&mut self, node: usize) {
        self.kept.retain(|stranger| stranger.node != Some(node));
    }

    /// Hosts that are awaited and, as they say, will not start.
    pub(super) fn lacking(&self) -> impl Iterator<Item = String> {
        let lacking = self.kept.iter().filter(|stranger| stranger.kind == Kind::Lacks);
        lacking.map(|stranger| format!("turned away {}", stranger.who))
    }

    /// The news since the last call.
    pub(super) fn news(&mut self) -> Vec<String> {
        std::mem::take(&mut self.news)
    }

    /// A few of them, of each kind the first ones.
    pub(super) fn list(&self) -> Vec<String> {
        let mut ranked: Vec<(usize, usize)> = Vec::new();
        for (at, stranger) in self.kept.iter().enumerate() {
            let before = self.kept[..at].iter().filter(|other| other.kind == stranger.kind);
            ranked.push((before.count(), at));
        }
        ranked.sort_unstable();
        let are_more = self.are_more || ranked.len() > LISTED;
        ranked.truncate(LISTED);
        let listed = ranked.into_iter().map(|(_, at)| self.kept[at].who.clone());
        listed.chain(are_more.then(|| "and others".to_owned())).collect()
    }
}

/// The address that stands for a host: of IPv6, whose networks have 64 bits for that (RFC 4291,
/// section 2.5.4), the first address of its network.
fn host(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    fn other_secret(claimed: usize, is_awaited: bool) -> Why {
        Why::Secret { claimed: format!("rank {claimed}"), is_awaited }
    }

    #[test]
    fn a_flood_of_claims_hides_neither_another_kind_nor_another_address() {
        let mut strangers = Strangers::default();
        for rank in 100..10_000 {
            strangers.turn_away(addr(1), other_secret(rank, false));
            strangers.turn_away(addr(1), Why::Protocol(rank as u32));
            strangers.turn_away(addr(1), Why::Tls(TlsFault::Broken(rank.to_string())));
        }
        let flood = strangers.news();
        assert_eq!(flood.len(), 2 * CLAIMS + 2, "{flood:?}");
        for (from, why, expected) in [
            (1, other_secret(3, true), "turned away rank 3 from 10.0.0.1, which has another"),
            (2, other_secret(3, true), "turned away rank 3 from 10.0.0.2, which has another"),
            (2, other_secret(77, false), "turned away rank 77 from 10.0.0.2, which has"),
            (2, Why::Protocol(4), "turned away a worker that speaks protocol 4 from 10.0.0.2; use"),
            (1, Why::Tls(TlsFault::Plain), "turned away a process from 10.0.0.1, which speaks"),
            (1, Why::Job("b".into()), "turned away a worker of job `b` from 10.0.0.1; see where"),
            (
                1,
                Why::Lacks { node: 1, lack: Lack::Secret },
                "turned away node 1 from 10.0.0.1, which says, without a proof, that it will not \
                 start: its secret cannot be used; see its own messages",
            ),
        ] {
            strangers.turn_away(addr(from), why.clone());
            strangers.turn_away(addr(from), why);
            let [told] = &strangers.news()[..] else { panic!("not told once: {expected}") };
            assert!(told.starts_with(expected), "{told}");
        }
        let list = strangers.list().join("; ");
        for kind in ["rank 3 ", "rank 100 ", "protocol 100 ", "speaks without TLS", "job `b`"] {
            assert!(list.contains(kind), "{list}");
        }
        assert!(list.ends_with("; and others"), "{list}");
    }

    #[test]
    fn many_addresses_are_bounded_and_it_is_said_that_there_are_more() {
        let mut strangers = Strangers::default();
        for number in 0..200 {
            strangers.turn_away(addr(number), other_secret(5, true));
        }
        let news = strangers.news();
        assert_eq!(news.len(), HOSTS + 1, "{news:?}");
        assert!(news[HOSTS].starts_with("turned away more than are named"), "{news:?}");
        assert_eq!(strangers.list().len(), HOSTS + 1);
        // A flood of one kind still hides no other.
        strangers.turn_away(addr(201), Why::Protocol(9));
        assert_eq!(strangers.news().len(), 1);
    }

    #[test]
    fn who_has_a_network_of_ipv6_is_one_host() {
        let mut strangers = Strangers::default();
        for number in 0..50_u16 {
            let from = Ipv6Addr::new(0x2001, 0xdb8, 0, 7, 0, 0, 0, number);
            strangers.turn_away(from.into(), other_secret(usize::from(number), true));
        }
        let elsewhere = Ipv6Addr::new(0x2001, 0xdb8, 0, 8, 0, 0, 0, 1);
        strangers.turn_away(elsewhere.into(), other_secret(1, true));
        let news = strangers.news();
        assert_eq!(news.len(), CLAIMS + 2, "{news:?}");
        assert!(news.last().unwrap().contains("2001:db8:0:8::1"), "{news:?}");
        // Hosts of one network that lack the same thing are all named.
        for number in [1, 2, 1] {
            let from = Ipv6Addr::new(0x2001, 0xdb8, 0, 7, 0, 0, 0, number);
            strangers.turn_away(from.into(), Why::Tls(TlsFault::Plain));
        }
        assert_eq!(strangers.news().len(), 2);
        let mapped = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x0a00, 1);
        assert_eq!(host(mapped.into()), addr(1));
    }

    #[test]
    fn what_is_kept_is_short_whatever_was_said() {
        let mut strangers = Strangers::default();
        strangers.turn_away(addr(1), Why::Job("x".repeat(1 << 20)));
        assert!(strangers.list()[0].len() <= 1 << 10);
    }

    #[test]
    fn a_host_that_has_come_is_no_longer_said_not_to_start() {
        let mut strangers = Strangers::default();
        for node in [1, 2] {
            strangers.turn_away(addr(node), Why::Lacks { node: node.into(), lack: Lack::Tls });
        }
        strangers.turn_away(addr(1), Why::Protocol(4));
        strangers.has_come(1);
        assert_eq!(strangers.lacking().count(), 1);
        let list = strangers.list().join("; ");
        assert!(list.contains("node 2") && list.contains("protocol 4"), "{list}");
        assert!(!list.contains("node 1"), "{list}");
    }
}
