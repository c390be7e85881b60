//! Speed of products, by format and number of rows: `cargo run --release -p kernels --example speed -- 2048 8192 1,8,512`.
//! Timed by this process's CPU time, on one thread: what other processes take does not count.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a tool of the workshop")]

use kernels::{Activations, Family, Format, Packed, Product, multiply};

fn main() {
    let word = |index: usize, default: &str| std::env::args().nth(index).unwrap_or_else(|| default.to_owned());
    let (inputs, outputs): (usize, usize) = (word(1, "2048").parse().unwrap(), word(2, "8192").parse().unwrap());
    let rows: Vec<usize> = word(3, "1,2,4,8,16,128,512").split(',').map(|rows| rows.parse().unwrap()).collect();
    for &family in Family::all().iter().rev().take(2) {
        for format in Format::ALL
            .into_iter()
            .filter(|format| word(4, "Q").split(",").any(|name| format!("{format:?}").starts_with(name)))
        {
            speed(family, format, inputs, outputs, &rows);
        }
    }
}

fn speed(family: Family, format: Format, inputs: usize, outputs: usize, rows: &[usize]) {
    let bytes = outputs * inputs / format.inputs_of_block() * format.bytes_of_block();
    let packed = Packed::pack(format, outputs, inputs, &vec![0x11; bytes]).unwrap();
    let share = packed.bytes() as f64 / bytes as f64;
    print!("{:>11} {:>5} packed/file {share:.3} ", family.name(), format!("{format:?}"));
    for &rows in rows {
        let mut activations = Activations::new();
        activations.rows_mut(rows, inputs).iter_mut().enumerate().for_each(|(index, x)| *x = (index % 13) as f32 - 6.0);
        activations.quantise(family);
        let mut out = vec![0.0; rows * outputs];
        let mut best = f64::MAX;
        for _ in 0..5 {
            let (start, mut times) = (cpu_seconds(), 0);
            // The clock ticks every few ms.
            while times == 0 || cpu_seconds() - start < 0.2 {
                multiply(family, &activations, &mut [Product { weights: &packed, out: &mut out }]);
                times += 1;
            }
            best = best.min((cpu_seconds() - start) / f64::from(times));
        }
        let tops = 2.0 * (rows * inputs * outputs) as f64 / best / 1e12;
        if rows == 1 {
            print!("1: {:.1} GB/s ", bytes as f64 / best / 1e9);
        } else {
            print!("{rows}: {tops:.3} ");
        }
    }
    println!("TOPS");
}

/// From `/proc/self/schedstat`: nanoseconds on a CPU.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}
