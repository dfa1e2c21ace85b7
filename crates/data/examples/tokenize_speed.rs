//! `tokenize_speed TOKENIZER THREADS OUT.tok FILE…`: how fast text becomes a token file, and what
//! the order-2 byte model makes of it. TOKENIZER is `byte`, `gpt2` or the path of a tokenizer.json.

use std::path::{Path, PathBuf};

use data::{
    DataConfig, Dataset, OneOrMany, TextInput, TokenizeOptions, Tokenizer, TokenizerSpec,
    order2_bits_per_byte, prepare, tokenize,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tokenizer, threads, out, files @ ..] = &arguments[..] else {
        return Err("usage: tokenize_speed TOKENIZER THREADS OUT.tok FILE…".into());
    };
    let spec = match tokenizer.as_str() {
        "byte" => TokenizerSpec::Byte,
        "gpt2" => TokenizerSpec::Gpt2,
        path => TokenizerSpec::File(path.into()),
    };
    let tokenizer = Tokenizer::load(&spec)?;
    let inputs: Vec<TextInput> = files.iter().map(TextInput::new).collect();
    let options = TokenizeOptions { threads: threads.parse()?, ..TokenizeOptions::default() };
    let report = tokenize(&inputs, &tokenizer, Path::new(out), &options, &mut |_| {})?;
    let speed = report.bytes as f64 / report.seconds / 1e6;
    println!("{report:?}\n{speed:.1} MB/s");
    println!("peak memory {} MB", peak_memory_bytes() >> 20);

    let cfg = DataConfig {
        tokenizer: spec,
        files: OneOrMany(vec![PathBuf::from(out)]),
        ..DataConfig::default()
    };
    let started = std::time::Instant::now();
    let prepared = prepare(&cfg, Path::new("."), "", &mut |_| {})?;
    println!("verified in {:.2} s", started.elapsed().as_secs_f64());
    let data = Dataset::open(&prepared, 512, 0, cfg.validation_fraction)?;
    let started = std::time::Instant::now();
    let order2 = order2_bits_per_byte(&data, &tokenizer)?;
    println!("{order2:?} in {:.2} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// High-water mark of the resident set; 0 where the system does not say.
fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
