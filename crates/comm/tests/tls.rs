//! TLS between processes: who is not taken, and what both ends say of it; what is damaged on the
//! way; and that nobody on the way can read.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use comm::rendezvous::{Hello, Joined, Reported, Server, join_with, report_lack, serve_lack};
use comm::tls::{Pem, Security, Tls, TlsFault, TlsMistake, TlsPart};
use comm::{Backend, CommError, Damage, Lack, Result, Secret, Settings};
use common::certificates::Authority;
use common::{PATIENCE_MS, control};
use rcgen::ExtendedKeyUsagePurpose;

const LOCAL: &str = "127.0.0.1:0";
/// Both ends know within this.
const SOON: Duration = Duration::from_secs(5);

fn hello(rank: usize, world: usize) -> Hello {
    let (job, version) = ("job".to_owned(), "1".to_owned());
    Hello { job, rank, world, version, ..Hello::default() }
}

fn secured(tls: Option<&Tls>) -> Security {
    Security { secret: Secret::of_text(&[7; 16]).unwrap(), tls: tls.cloned() }
}

fn serve(tls: Option<&Tls>, world: usize) -> Server {
    Server::of_nodes(LOCAL, ("job", secured(tls)), world, 1, PATIENCE_MS).unwrap()
}

fn join(server: &Server, rank: usize, tls: Option<&Tls>) -> Result<Joined> {
    join_with(server.addr(), hello(rank, server.world()), secured(tls), PATIENCE_MS)
}

/// The errors of a server and a guest that do not come together, soon.
fn strangers(ours: Option<&Tls>, theirs: Option<&Tls>) -> (String, TlsFault) {
    let server = serve(ours, 2);
    let begun = Instant::now();
    let fault = match join(&server, 1, theirs) {
        Err(CommError::Tls { who, fault }) => {
            let expected = format!("the meeting point at {}, node 0 of the job,", server.addr());
            assert_eq!(who, expected);
            fault
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it is taken"),
    };
    let mut news = Vec::new();
    while news.is_empty() && begun.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(5));
        news = server.news();
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    // Who belongs there still meets.
    let ranks: Vec<Joined> = std::thread::scope(|scope| {
        let server = &server;
        let ranks = [0, 1].map(|rank| scope.spawn(move || join(server, rank, ours)));
        ranks.into_iter().map(|rank| rank.join().unwrap().unwrap()).collect()
    });
    ranks.into_iter().for_each(|joined| joined.control.bye());
    let [said] = &news[..] else { panic!("{news:?}") };
    (said.strip_prefix("turned away a process from 127.0.0.1, which ").unwrap().to_owned(), fault)
}

#[test]
fn who_speaks_plain_and_who_needs_tls_are_told_apart_on_both_sides() {
    let tls = Authority::new().of_anyone();
    let same = "give every host of the job ranks.tls (--tls), or none";
    let (said, fault) = strangers(Some(&tls), None);
    assert_eq!(said, format!("speaks without TLS, which this process has; {same}"));
    assert_eq!(fault, TlsFault::Needed);
    let (said, fault) = strangers(None, Some(&tls));
    assert_eq!(said, format!("speaks TLS alone, which this process has not; {same}"));
    assert_eq!(fault, TlsFault::Plain);
}

/// A host that has no files of TLS which it can use has nothing but its word, in plain.
#[test]
fn who_cannot_speak_tls_says_so_and_is_told_apart_from_who_does_without() {
    let tls = Authority::new().of_anyone();
    let server = Server::of_nodes(LOCAL, ("job", secured(Some(&tls))), 2, 2, PATIENCE_MS).unwrap();
    let begun = Instant::now();
    assert_eq!(report_lack(server.addr(), 1, Lack::Tls, SOON), Reported::Heard);
    let mut news = server.news();
    while news.is_empty() && begun.elapsed() < SOON {
        news = server.news();
    }
    let said = "turned away node 1 from 127.0.0.1, which says, without a proof, that it will not \
                start: its files of TLS cannot be used; see its own messages";
    assert_eq!(news, [said]);
    // And node 0, to those that begin TLS.
    let addr = TcpListener::bind(LOCAL).unwrap().local_addr().unwrap();
    let begun = Instant::now();
    let node_0 = std::thread::spawn(move || serve_lack(addr, Lack::Tls, SOON));
    let said = join_with(addr, hello(1, 2), secured(Some(&tls)), PATIENCE_MS).err().unwrap();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let expected = "node 0 ended before the job began: its files of TLS cannot be used, as who \
                    listens at";
    assert!(said.to_string().starts_with(expected), "{said}");
    node_0.join().unwrap().unwrap();
}

#[test]
fn another_authority_is_named_on_both_sides() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let advice = "give every host of the job the same ranks.tls.authority (authority.pem of \
                  --tls), and a certificate that it has signed";
    // Each takes the other for a stranger; the one that connects is the first to see.
    let (said, fault) = strangers(Some(&ours.of_anyone()), Some(&theirs.of_anyone()));
    let expected = "takes this process's certificate for one of another authority";
    assert_eq!(said, format!("{expected}; {advice}"));
    assert_eq!(fault, TlsFault::Authority);
    // One that takes ours and shows one of its own.
    let made = theirs.sign(2000, 4000);
    let (said, fault) = strangers(Some(&ours.of_anyone()), Some(&ours.tls(&made)));
    assert_eq!(said, format!("has no certificate of this job's authority; {advice}"));
    assert_eq!(fault, TlsFault::OtherAuthority);
}

#[test]
fn certificates_out_of_their_time_are_named_on_both_sides_with_both_times() {
    let authority = Authority::new();
    let good = authority.of_anyone();
    for (from, to, what) in [
        (2001, 2002, "has a certificate that expired at 2002-01-01 00:00:00 UTC"),
        (3001, 3002, "has a certificate that is not valid before 3001-01-01 00:00:00 UTC"),
    ] {
        let bad = authority.tls(&authority.sign(from, to));
        let begins = format!("{what}, and the clock here says 2");
        let (said, fault) = strangers(Some(&good), Some(&bad));
        assert!(said.starts_with(&begins), "{said}");
        let valid = format!(
            "takes this process's certificate for one that has expired or is not valid yet, it is \
             valid from {from}-01-01 00:00:00 UTC to {to}-01-01 00:00:00 UTC, and the clock here \
             says 2"
        );
        assert!(fault.to_string().starts_with(&valid), "{fault}");
        // And where it listens.
        let (said, fault) = strangers_with_one(&bad, &good);
        assert!(said.starts_with(&valid), "{said}");
        assert!(fault.to_string().starts_with(&begins), "{fault}");
        // Whoever has it is told before.
        let own = bad.check().unwrap_err();
        assert_eq!(own.part(), TlsPart::Certificate);
        assert!(own.to_string().starts_with(&begins), "{own}");
    }
    good.check().unwrap();
}

/// As [`strangers`], where nobody takes the server.
fn strangers_with_one(ours: &Tls, theirs: &Tls) -> (String, TlsFault) {
    let server = serve(Some(ours), 1);
    let Err(CommError::Tls { fault, .. }) = join(&server, 0, Some(theirs)) else { panic!("taken") };
    let begun = Instant::now();
    let mut news = Vec::new();
    while news.is_empty() && begun.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(5));
        news = server.news();
    }
    let said = news[0].strip_prefix("turned away a process from 127.0.0.1, which ");
    (said.unwrap().to_owned(), fault)
}

#[test]
fn what_is_no_certificate_or_key_is_refused_by_its_part() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let [one, other] = [0, 1].map(|_| ours.sign(2000, 4000));
    let made = |certificate: &str, key: &str, authority: &str| {
        let (certificate, key) = (certificate.as_bytes(), key.as_bytes());
        Tls::new(&Pem { certificate, key, authority: authority.as_bytes() }).map(drop).unwrap_err()
    };
    let nothing = |part| TlsMistake::Nothing { part };
    assert_eq!(made("", &one.key, &ours.pem), nothing(TlsPart::Certificate));
    assert_eq!(made(&one.key, &one.key, &ours.pem), nothing(TlsPart::Certificate));
    assert_eq!(made(&one.certificate, &one.certificate, &ours.pem), nothing(TlsPart::Key));
    assert_eq!(made(&one.certificate, &one.key, "text"), nothing(TlsPart::Authority));
    assert_eq!(made(&one.certificate, &other.key, &ours.pem), TlsMistake::KeyOfAnother);
    let cut = one.certificate.replacen("MII", "MIJ", 1);
    let cut = made(&cut, &one.key, &ours.pem);
    assert_eq!(cut.part(), TlsPart::Certificate, "{cut}");
    let (server, client) =
        (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
    for one in [&server, &client] {
        let made = ours.sign_for((2000, 4000), std::slice::from_ref(one));
        let of_one_end = ours.tls(&made).check().unwrap_err();
        assert_eq!(of_one_end, TlsMistake::Own(TlsFault::Purpose));
    }
    ours.tls(&ours.sign_for((2000, 4000), &[server, client])).check().unwrap();
    let stranger = theirs.tls(&one).check().unwrap_err();
    assert_eq!(stranger, TlsMistake::Own(TlsFault::Authority));
}

/// The bytes that pass a listener that leads somewhere else.
#[derive(Default)]
struct Passed {
    bytes: Mutex<Vec<u8>>,
    /// Whether a bit is to be flipped, once, in what goes there after so much that it is data.
    flips: AtomicBool,
    /// Whether it goes on in small parts, with time between them.
    dribbles: AtomicBool,
}

/// Records of TLS as they pass: a type, a version, two bytes of length, and so many of what is
/// sealed (RFC 8446, section 5.1).
#[derive(Default)]
struct Records {
    header: Vec<u8>,
    left: usize,
}

impl Records {
    /// The last byte of these that is sealed. Of a header receivers pass over the version.
    fn last_sealed(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut last = None;
        for (at, &byte) in bytes.iter().enumerate() {
            if self.left > 0 {
                (self.left, last) = (self.left - 1, Some(at));
                continue;
            }
            self.header.push(byte);
            if let [_, _, _, high, low] = self.header[..] {
                self.left = usize::from(u16::from_be_bytes([high, low]));
                self.header.clear();
            }
        }
        last
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, passed: &Passed, is_there: bool) {
    let (mut bytes, mut total, mut records) = (vec![0; 64 << 10], 0, Records::default());
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let now = &mut bytes[..count];
        let sealed = records.last_sealed(now).filter(|_| is_there && total > 200_000);
        if let Some(at) = sealed.filter(|_| passed.flips.swap(false, Ordering::Relaxed)) {
            now[at] ^= 4;
        }
        total += count;
        passed.bytes.lock().unwrap().extend_from_slice(now);
        let dribbles = passed.dribbles.load(Ordering::Relaxed);
        let part = if dribbles { 7_001 } else { now.len() };
        let went = now.chunks(part).all(|part| {
            std::thread::sleep(Duration::from_micros(if dribbles { 300 } else { 0 }));
            to.write_all(part).is_ok()
        });
        if !went {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// A way to `to`; it ends with the connections.
fn way(to: SocketAddr, passed: &Arc<Passed>) -> SocketAddr {
    let listener = TcpListener::bind(LOCAL).unwrap();
    let addr = listener.local_addr().unwrap();
    let passed = Arc::clone(passed);
    std::thread::spawn(move || {
        for inner in listener.incoming() {
            let (inner, outer) = (inner.unwrap(), TcpStream::connect(to).unwrap());
            let ways = [(&inner, &outer, true), (&outer, &inner, false)];
            for (from, to, is_there) in ways {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let passed = Arc::clone(&passed);
                std::thread::spawn(move || pass(from, to, &passed, is_there));
            }
        }
    });
    addr
}

/// Two ranks, of which the second comes by a way, gather a word many times: what each is told, also
/// of what the other has met, which it need not know before it meets that one again.
fn gather(passed: &Arc<Passed>, tls: Option<&Tls>, word: &str) -> Vec<Result<Vec<Vec<u8>>>> {
    let mut backends = common::backends("tcp", 2);
    if let Backend::Tcp { peers, .. } = &mut backends[1] {
        peers[0] = way(peers[0], passed);
    }
    let settings = |_| Settings { tls: tls.cloned(), ..common::settings(10_000) };
    let message = word.repeat(2_000_001 / word.len());
    common::as_ranks(backends, settings, |world| {
        let all = control(&world).all_gather_bytes(message.as_bytes())?;
        control(&world).barrier().map(|()| all)
    })
}

const WORD: &str = "nobody on the way may read this. ";

#[test]
fn nobody_on_the_way_can_read() {
    let tls = Authority::new().of_anyone();
    for (tls, is_seen) in [(None, true), (Some(&tls), false)] {
        let passed = Arc::default();
        for (rank, got) in gather(&passed, tls, WORD).into_iter().enumerate() {
            let got = got.unwrap();
            assert!(got.iter().all(|text| text.starts_with(WORD.as_bytes())), "rank {rank}");
        }
        let bytes = passed.bytes.lock().unwrap();
        assert!(bytes.len() > 4_000_000, "{}", bytes.len());
        let seen = bytes.windows(WORD.len()).any(|window| window == WORD.as_bytes());
        assert_eq!(seen, is_seen);
    }
}

/// As ranks of a job connect: by what they have joined with.
#[test]
fn ranks_that_have_joined_over_tls_have_it_among_themselves() {
    let tls = Authority::new().of_anyone();
    for (tls, is_seen) in [(None, true), (Some(&tls), false)] {
        let (server, passed) = (serve(tls, 2), Arc::<Passed>::default());
        let rank = |rank: usize| {
            let listener = comm::tcp::listen(LOCAL.parse().unwrap()).unwrap();
            let hello = Hello { listen: listener.local_addr().ok(), ..hello(rank, 2) };
            let joined = join_with(server.addr(), hello, secured(tls), PATIENCE_MS).unwrap();
            let (mut peers, job) = (joined.peers.clone(), joined.group.clone());
            if rank == 1 {
                peers[0] = way(peers[0], &passed);
            }
            let backend = Backend::Tcp { listener, peers, job };
            let settings = Settings::new(PATIENCE_MS);
            let world = joined.control.connect(backend, rank, 2, settings).unwrap();
            let got = control(&world).all_gather_bytes(WORD.as_bytes()).unwrap();
            assert_eq!(got, [WORD.as_bytes(); 2]);
            joined.control.bye();
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| rank(1));
            rank(0);
            other.join().unwrap();
        });
        let bytes = passed.bytes.lock().unwrap();
        assert_eq!(bytes.windows(WORD.len()).any(|window| window == WORD.as_bytes()), is_seen);
    }
}

#[test]
fn a_bit_that_flips_on_the_way_is_a_damaged_record() {
    let tls = Authority::new().of_anyone();
    let passed = Arc::<Passed>::default();
    passed.flips.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    let told = gather(&passed, Some(&tls), WORD);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert!(!passed.flips.load(Ordering::Relaxed), "nothing was flipped");
    let first = told[0].as_ref().map(Vec::len).unwrap_err();
    let is_it = matches!(first, CommError::Damaged { rank: 1, damage: Damage::Record, .. });
    assert!(is_it, "{first}");
    let second = told[1].as_ref().map(Vec::len).unwrap_err();
    // By the signal, or by the connection that rank 0 has closed.
    let is_it = matches!(second, CommError::Revoked { .. } | CommError::PeerLost { rank: 0, .. });
    assert!(is_it, "{second}");
}

#[test]
fn records_that_come_in_parts_are_whole_in_the_end() {
    let tls = Authority::new().of_anyone();
    let passed = Arc::<Passed>::default();
    passed.dribbles.store(true, Ordering::Relaxed);
    let expected = WORD.repeat(2_000_001 / WORD.len()).into_bytes();
    for got in gather(&passed, Some(&tls), WORD) {
        assert!(got.unwrap().iter().all(|text| *text == expected));
    }
}

/// Bytes that TLS holds back for a peer that does not read are no progress.
#[test]
fn who_stands_still_is_named() {
    let told = common::with_ranks("tls", 2, 700, |world| {
        if world.rank() == 1 {
            let begun = Instant::now();
            while world.revocation().why().is_none() && begun.elapsed() < SOON {
                std::thread::sleep(Duration::from_millis(5));
            }
            return Ok(Vec::new());
        }
        control(&world).all_gather_bytes(&vec![7; 32 << 20])
    });
    let error = told[0].as_ref().unwrap_err();
    let is_it = matches!(error, CommError::Timeout { missing, .. } if *missing == [1]);
    assert!(is_it, "{error}");
}

/// Ranks of which one alone has TLS do not meet, and do not wait either.
#[test]
fn ranks_of_which_one_has_tls_do_not_meet() {
    let tls = Authority::new().of_anyone();
    let [alone, without] = ["speaks TLS alone", "speaks without TLS"];
    for (which, expected, of_other) in [(0, alone, without), (1, without, alone)] {
        let backends = common::backends("tcp", 2);
        let begun = Instant::now();
        let told: Vec<(String, Duration)> = std::thread::scope(|scope| {
            let ranks = backends.into_iter().enumerate().map(|(rank, backend)| {
                let tls = (rank == which).then(|| tls.clone());
                let settings = Settings { tls, ..common::settings(3_000) };
                scope.spawn(move || {
                    let met = comm::connect_with(backend, rank, 2, settings);
                    (common::message(met), begun.elapsed())
                })
            });
            let ranks: Vec<_> = ranks.collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        // The rank that connects.
        let (said, took) = &told[1];
        assert!(said.starts_with("join #0: rank 0 is lost: who listens at 127.0.0.1:"), "{said}");
        assert!(said.contains(expected) && *took < Duration::from_secs(2), "{said} {took:?}");
        // And the one that it comes to, which may still be met by another until its time is up.
        let (said, _) = &told[0];
        let start = "join #0: rank 1 is lost: who came from 127.0.0.1, where that rank is, ";
        assert!(said.starts_with(&format!("{start}{of_other}")), "{said}");
    }
}

#[test]
#[ignore = "a measurement: benches/cpu/transports.sh runs it"]
fn what_tls_costs() {
    use comm::{EvenPlan, Op, RedOp};
    use device::{DType, Device};
    use layout::Tree;
    for bytes in [8_usize, 16 << 20] {
        let rounds = if bytes > 1024 { 3 } else { 2_000 };
        let took = |kind: &str| {
            let took = common::with_ranks(kind, 2, PATIENCE_MS, |world| {
                let device = Device::cpu(1).unwrap();
                let group = world.group(&device).unwrap();
                let window = group.window(bytes).unwrap();
                let plan = EvenPlan::new(&Tree::for_leaves(2), 0..bytes / 4, DType::F32);
                let plan = plan.reducing(RedOp::Sum);
                let op = group.prepare(Op::AllReduce { window, plan }).unwrap();
                let run = || {
                    let begun = Instant::now();
                    (0..rounds).for_each(|_| group.call(&device.stream(), &op).unwrap());
                    begun.elapsed().as_secs_f64() / f64::from(rounds)
                };
                (0..6).map(|_| run()).fold(f64::MAX, f64::min)
            });
            took.into_iter().fold(0.0, f64::max)
        };
        // In turn, and the best of each: whatever else the machine does falls on both.
        let best = (0..8).map(|_| ["tcp", "tls"].map(&took));
        let best = best.fold([f64::MAX; 2], |best, now| [0, 1].map(|at| now[at].min(best[at])));
        let [plain, tls] = best.map(|s| 1e6 * s);
        let ratio = tls / plain;
        println!("all_reduce of {bytes} B: {plain:.1} µs, over TLS {tls:.1}: {ratio:.2} times");
    }
}
