//! Pickles that Python wrote, and mangled ones.

use proptest::prelude::*;

use super::*;

/// `{"a": [1, -2, 70000, 1<<40, -(1<<70)], "b": (True, None, 2.5), "c": b"xy", "d": {3},
/// "e": "é", "f": (), "g": frozenset([4]), "h": the list of "a"}`
const SAME: [(u8, &str); 3] = [
    (
        3,
        "80037d71002858010000006171015d7102284b014afeffffff4a701101008a060000000000018a090000\
         000000000000c0655801000000627103884e474004000000000000877104580100000063710543027879\
         71065801000000647107636275696c74696e730a7365740a71085d71094b036185710a52710b58010000\
         0065710c5802000000c3a9710d580100000066710e29580100000067710f636275696c74696e730a6672\
         6f7a656e7365740a71105d71114b046185711252711358010000006871146802752e",
    ),
    (
        4,
        "8004956d000000000000007d94288c0161945d94284b014afeffffff4a701101008a060000000000018a\
         090000000000000000c0658c016294884e47400400000000000087948c01639443027879948c0164948f\
         94284b03908c0165948c02c3a9948c016694298c016794284b0491948c0168946802752e",
    ),
    (
        5,
        "8005956d000000000000007d94288c0161945d94284b014afeffffff4a701101008a060000000000018a\
         090000000000000000c0658c016294884e47400400000000000087948c01639443027879948c0164948f\
         94284b03908c0165948c02c3a9948c016694298c016794284b0491948c0168946802752e",
    ),
];

/// A list of an object that holds itself, an `OrderedDict` and a `deque`.
const OBJECTS: [&[u8]; 2] = [
    b"\x80\x02]q\x00(cm\nA\nq\x01)\x81q\x02}q\x03(X\x01\x00\x00\x00xq\x04K\x01X\x01\x00\x00\x00yq\
      \x05h\x02ubccollections\nOrderedDict\nq\x06)Rq\x07X\x01\x00\x00\x00kq\x08K\x01sccollections\n\
      deque\nq\t)Rq\nK\x07ae.",
    b"\x80\x04\x95]\x00\x00\x00\x00\x00\x00\x00]\x94(\x8c\x01m\x94\x8c\x01A\x94\x93\x94)\x81\x94}\
      \x94(\x8c\x01x\x94K\x01\x8c\x01y\x94h\x04ub\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\
      \x94)R\x94\x8c\x01k\x94K\x01sh\x08\x8c\x05deque\x94\x93\x94)R\x94K\x07ae.",
];

const NAMES: [(&str, &str); 5] = [
    ("m", "A"),
    ("collections", "OrderedDict"),
    ("collections", "deque"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
];

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// A value as text, each node down to eight levels.
fn show(pickle: &Pickle, id: Id, level: usize) -> String {
    let all = |ids: &[Id]| {
        let parts: Vec<String> = ids.iter().map(|&id| show(pickle, id, level + 1)).collect();
        parts.join(" ")
    };
    let pairs = |pairs: &[(Id, Id)]| {
        let pair = |&(key, value): &(Id, Id)| all(&[key, value]);
        pairs.iter().map(pair).collect::<Vec<String>>().join(", ")
    };
    if level > 8 {
        return "…".to_owned();
    }
    match pickle.node(id) {
        Node::List(ids) => format!("[{}]", all(ids)),
        Node::Tuple(ids) => format!("({})", all(ids)),
        Node::Set(ids) => format!("<{}>", all(ids)),
        Node::Dict(all) => format!("{{{}}}", pairs(all)),
        Node::Text(text) => format!("{text:?}"),
        Node::Global(module, name) => format!("{module}.{name}"),
        Node::Object(object) => {
            let Object { callable, arguments, state, items, elements } = &**object;
            let state = state.map(|state| show(pickle, state, level + 4)).unwrap_or_default();
            let made = all(&[*callable, *arguments]);
            format!("{made}{state}{{{}}}[{}]", pairs(items), all(elements))
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn values_are_the_same_in_every_protocol() {
    for (protocol, hex) in SAME {
        let bytes = bytes(hex);
        let pickle = Pickle::read(&bytes, Globals::Only(&NAMES)).unwrap();
        // Protocol 3 makes sets by a call.
        let shown = show(&pickle, pickle.root(), 0)
            .replace("builtins.set ([Int(3)]){}[]", "<Int(3)>")
            .replace("builtins.frozenset ([Int(4)]){}[]", "<Int(4)>");
        let list = "[Int(1) Int(-2) Int(70000) Int(1099511627776) \
                    Long([0, 0, 0, 0, 0, 0, 0, 0, 192])]";
        let wanted = format!(
            "{{\"a\" {list}, \"b\" (Bool(true) None Float(2.5)), \"c\" Bytes([120, 121]), \
             \"d\" <Int(3)>, \"e\" \"é\", \"f\" (), \"g\" <Int(4)>, \"h\" {list}}}"
        );
        assert_eq!(shown, wanted, "protocol {protocol}");
    }
}

#[test]
fn objects_are_described_and_may_be_circular() {
    for bytes in OBJECTS {
        let pickle = Pickle::read(bytes, Globals::Only(&NAMES)).unwrap();
        let a = |state: &str| format!("m.A (){state}{{}}[]");
        let wanted = format!(
            "[{} collections.OrderedDict (){{\"k\" Int(1)}}[] collections.deque (){{}}[Int(7)]]",
            a(&format!("{{\"x\" Int(1), \"y\" {}}}", a("…")))
        );
        assert_eq!(show(&pickle, pickle.root(), 0), wanted);
    }
}

#[test]
fn globals_that_are_not_expected_are_refused_by_name_and_place() {
    let evil = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.";
    let error = Pickle::read(evil, Globals::Only(&NAMES)).unwrap_err();
    let told = error.to_string();
    assert_eq!(
        told,
        "byte 2 of the pickle: `os.system` is no name that is expected here, and nothing is \
         executed"
    );
    let evil = b"\x80\x04\x8c\x02os\x8c\x06system\x93.";
    assert_eq!(Pickle::read(evil, Globals::Only(&NAMES)).unwrap_err().at, 14);
    // Kept for whoever looks at it, it is a name and no more.
    let kept = Pickle::read(evil, Globals::Any).unwrap();
    assert_eq!(kept.node(kept.root()), &Node::Global("os", "system"));
}

#[test]
fn faults_have_a_place() {
    let told = [
        (&b""[..], 0, Fault::NoProtocol),
        (b"(lp0\n.", 0, Fault::NoProtocol),
        (b"\x80", 0, Fault::Ends(1)),
        (b"\x80\x06N.", 0, Fault::Protocol(6)),
        (b"\x80\x02N", 3, Fault::Ends(1)),
        (b"\x80\x02.", 2, Fault::Stack),
        (b"\x80\x02NN.", 4, Fault::Left(2)),
        (b"\x80\x02(N.", 4, Fault::Left(2)),
        (b"\x80\x02N.N", 3, Fault::Rest(1)),
        (b"\x80\x02I1\n.", 2, Fault::Opcode(b'I')),
        (b"\x80\x02\x82\x01.", 2, Fault::Opcode(0x82)),
        (b"\x80\x02t.", 2, Fault::Mark),
        (b"\x80\x02h\x07.", 2, Fault::Memo(7)),
        (b"\x80\x02N(q\x00.", 4, Fault::Stack),
        (b"\x80\x02}(Nu.", 5, Fault::Odd),
        (b"\x80\x02NNa.", 4, Fault::Kind { wanted: "a list", found: "None" }),
        (b"\x80\x02NNR.", 4, Fault::Kind { wanted: "a global to call", found: "None" }),
        (b"\x80\x02NNb.", 4, Fault::Kind { wanted: "an object", found: "None" }),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", 2, Fault::Text),
        // Lengths that memory must not be taken for.
        (b"\x80\x02X\xff\xff\xff\xff.", 2, Fault::Ends(u64::from(u32::MAX) - 1)),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", 2, Fault::Ends(u64::MAX - 1)),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", 2, Fault::Ends(0x7fff_fffe)),
        (b"\x80\x04\x95\x02\x00\x00\x00\x00\x00\x00\x00.", 2, Fault::Ends(1)),
    ];
    for (bytes, at, fault) in told {
        let error = Pickle::read(bytes, Globals::Any).unwrap_err();
        assert_eq!(error, PickleError { at, fault }, "{bytes:?}");
    }
    // A number that would be an index is a key.
    let far = b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\xff\x86.";
    let pickle = Pickle::read(far, Globals::Any).unwrap();
    assert_eq!(show(&pickle, pickle.root(), 0), "(None None)");
}

/// Nodes and parts of nodes; each is a few words.
fn size(pickle: &Pickle) -> usize {
    let parts = |node: &Node| match node {
        Node::List(ids) | Node::Tuple(ids) | Node::Set(ids) => ids.len(),
        Node::Dict(pairs) => 2 * pairs.len(),
        Node::Object(object) => 4 + 2 * object.items.len() + object.elements.len(),
        _ => 0,
    };
    pickle.nodes.iter().map(|node| 1 + parts(node)).sum()
}

fn good() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = SAME.iter().map(|(_, hex)| bytes(hex)).collect();
    all.extend(OBJECTS.map(<[u8]>::to_vec));
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn mangled_pickles_end_and_stay_small(
        which in 0_usize..5,
        places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut bytes = good().swap_remove(which);
        for (place, value) in places {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(pickle) = Pickle::read(&bytes, Globals::Any) {
            prop_assert!(size(&pickle) <= 6 * bytes.len());
        }
    }

    #[test]
    fn any_opcodes_end_and_stay_small(
        opcodes in proptest::collection::vec(
            prop::sample::select(b"(.012NJKMGXBCTU])}ltdaesuqrhjcRbQ\x81\x85\x86\x87\x88\x8f\x90\
                                   \x91\x92\x93\x94\x00\x01\n".to_vec()), 0..200),
    ) {
        let bytes = [&b"\x80\x02"[..], &opcodes].concat();
        if let Ok(pickle) = Pickle::read(&bytes, Globals::Any) {
            prop_assert!(size(&pickle) <= 6 * bytes.len());
        }
    }
}
