//! Recording, by its public face: one test, because there is one recorder in a process.

use std::collections::BTreeMap;

use device::trace::{self, Detail, Moved, SPANS, Span, Told};
use device::{DType, Device, work};

/// Everything that was recorded, by the names of the tracks; and what was lost.
#[derive(Default)]
struct Seen {
    names: BTreeMap<u32, String>,
    spans: Vec<(String, Span)>,
    lost: Vec<(String, u64)>,
}

impl Seen {
    fn drain(&mut self) {
        trace::drain(&mut |told| match told {
            Told::Track { track, name } => {
                assert_eq!(self.names.insert(track, name.to_owned()), None, "told twice");
            }
            Told::Span { track, span } => self.spans.push((self.names[&track].clone(), *span)),
            Told::Lost { track, spans } => self.lost.push((self.names[&track].clone(), spans)),
        });
    }

    fn on(&self, track: &str) -> Vec<(&'static str, Detail)> {
        let here = self.spans.iter().filter(|(name, _)| name == track);
        here.map(|(_, span)| (span.name, span.detail)).collect()
    }
}

/// Runs `work` on a thread of this name.
fn on_thread(name: &str, work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn_scoped(scope, work).unwrap().join().unwrap();
    });
}

#[test]
fn what_is_recorded_lies_on_its_track_and_what_is_too_much_is_counted() {
    let device = Device::cpu(1).unwrap();
    let (stream, x) = (device.stream(), device.zeros(&[10], DType::F32).unwrap());
    let launch = |name| {
        let x = x.clone();
        let kernel = move |k: &device::Kernel| {
            k.read::<f32>(&x)?;
            k.streams();
            k.flops(20);
            Ok(())
        };
        stream.launch(name, kernel).unwrap();
    };
    let mut seen = Seen::default();

    on_thread("off", || launch("before"));
    assert_eq!(trace::begin(), None);
    trace::switch(true);
    let group = trace::track("group 0".into());
    let moved = Moved { sequence: 3, transport: "shm", ..Moved::default() };
    on_thread("one", || {
        let begin_ns = trace::begin().unwrap();
        launch("a");
        work::calling("fsync", None, || launch("b"));
        trace::end("step", begin_ns, Detail::Step(7));
        let (begin_ns, end_ns) = (begin_ns, trace::now_ns());
        let detail = Detail::Operation(moved);
        trace::record_on(group, Span { name: "barrier", begin_ns, end_ns, detail });
    });
    // A call that has begun by the end of recording is recorded.
    on_thread("last", || work::calling("write", None, || trace::switch(false)));
    launch("after");
    seen.drain();
    let kernel = Detail::Kernel { flops: 20, bytes: 40 };
    assert_eq!(seen.on("off"), []);
    let one = [("a", kernel), ("b", kernel), ("fsync", Detail::Call), ("step", Detail::Step(7))];
    assert_eq!(seen.on("one"), one);
    assert_eq!(seen.on("group 0"), [("barrier", Detail::Operation(moved))]);
    assert_eq!(seen.on("last"), [("write", Detail::Call)]);
    assert_eq!(seen.spans.len(), 6);
    for (_, span) in &seen.spans {
        assert!(span.begin_ns <= span.end_ns, "{span:?}");
    }

    trace::switch(true);
    on_thread("full", || (0..SPANS + 5).for_each(|_| launch("many")));
    trace::switch(false);
    seen.drain();
    assert_eq!(seen.on("full").len(), SPANS);
    assert_eq!(seen.lost, [("full".to_owned(), 5)]);
    let before = seen.spans.len();
    seen.drain();
    assert_eq!((seen.spans.len(), seen.lost.len()), (before, 1));
}
