use std::collections::*;
use tandem::demo::corpus::*;
use tandem::demo::tokenizer;
fn main() {
    let mode = std::env::args().nth(1).unwrap_or_default();
    if mode == "show" {
        let mut n: HashMap<Kind, usize> = HashMap::new();
        for i in 0..4000 {
            let s = Sample::draw(1, i);
            let c = n.entry(s.kind).or_default();
            *c += 1;
            if *c <= 8 {
                println!("--- {:?}\n{}", s.kind, tokenizer::render(&s.document));
            }
        }
    }
    if mode == "tok" {
        let v: usize = std::env::args().nth(2).unwrap().parse().unwrap();
        let t = std::time::Instant::now();
        let tok = tokenizer::train(1, v).unwrap();
        println!("train {:?}", t.elapsed());
        let mut toks: BTreeMap<Kind, (usize, usize, HashSet<String>, usize, usize)> =
            BTreeMap::new();
        for i in 0..20000 {
            let s = Sample::draw(1, i);
            let e = tokenizer::example(&tok, &s.document).unwrap();
            let c = toks.entry(s.kind).or_default();
            c.0 += 1;
            c.1 += e.ids.len();
            c.2.insert(s.document.plain());
            c.3 = c.3.max(e.ids.len());
            c.4 += s.held_out() as usize;
        }
        let total: usize = toks.values().map(|c| c.1).sum();
        for (k, c) in &toks {
            println!(
                "{k:?} n {} tokens {} ({}%) mean {} unique {} max {} held {}",
                c.0,
                c.1,
                c.1 * 100 / total,
                c.1 / c.0,
                c.2.len(),
                c.3,
                c.4
            );
        }
        println!("mean {} vocab {}", total / 20000, tok.get_vocab_size(true));
    }
}
