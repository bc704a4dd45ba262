//! Expressions of a template.

use crate::ast::{Args, Binary, Comparison, Expr, Node};
use crate::functions::{is_filter, is_test};
use crate::lexer::Token;
use crate::parser::{Parsed, Parser};

/// Precedence of operators.
mod level {
    pub(super) const OR: u8 = 1;
    pub(super) const AND: u8 = 2;
    pub(super) const NOT: u8 = 3;
    pub(super) const COMPARE: u8 = 4;
    pub(super) const SUM: u8 = 5;
    pub(super) const CONCAT: u8 = 6;
    pub(super) const PRODUCT: u8 = 7;
    pub(super) const POWER: u8 = 8;
}

fn deepest<'e>(parts: impl IntoIterator<Item = &'e Expr>) -> u16 {
    parts.into_iter().map(|part| part.depth).max().unwrap_or(0)
}

impl Args {
    fn depth(&self) -> u16 {
        let keywords = self.keywords.iter().map(|(_, value)| value);
        deepest(self.positional.iter().chain(keywords).chain(&self.star).chain(&self.double_star))
    }
}

impl Parser {
    /// An expression; without `conditional`, a following `if` is not part of it.
    pub(crate) fn expression(&mut self, conditional: bool) -> Parsed<Expr> {
        self.nested(|parser| if conditional { parser.conditional() } else { parser.operations(level::OR) })
    }

    fn conditional(&mut self) -> Parsed<Expr> {
        let mark = self.unknown.len();
        let line = self.line();
        let mut then = self.operations(level::OR)?;
        while self.accept_name("if") {
            let test = self.operations(level::OR)?;
            let otherwise = if self.accept_name("else") { Some(self.expression(true)?) } else { None };
            let below = deepest([&then, &test].into_iter().chain(&otherwise));
            let otherwise = otherwise.map(Box::new);
            then = self.expr(Node::If { test: Box::new(test), then: Box::new(then), otherwise }, line, below)?;
            // What is unknown in any part of it is an error only where it runs.
            self.unknown.truncate(mark);
        }
        Ok(then)
    }

    fn operator(&self) -> Option<(u8, Option<Binary>)> {
        Some(match self.current() {
            Token::Name(name) => match name.as_str() {
                "or" => (level::OR, None),
                "and" => (level::AND, None),
                "in" => (level::COMPARE, None),
                "not" if *self.ahead() == Token::Name("in".to_owned()) => (level::COMPARE, None),
                _ => return None,
            },
            Token::Op(op) => match *op {
                "==" | "!=" | "<" | "<=" | ">" | ">=" => (level::COMPARE, None),
                "+" => (level::SUM, Some(Binary::Add)),
                "-" => (level::SUM, Some(Binary::Sub)),
                "~" => (level::CONCAT, None),
                "*" => (level::PRODUCT, Some(Binary::Mul)),
                "/" => (level::PRODUCT, Some(Binary::Div)),
                "//" => (level::PRODUCT, Some(Binary::FloorDiv)),
                "%" => (level::PRODUCT, Some(Binary::Mod)),
                "**" => (level::POWER, Some(Binary::Pow)),
                _ => return None,
            },
            _ => return None,
        })
    }

    /// Operations whose precedence is at least `least`, from left to right.
    fn operations(&mut self, least: u8) -> Parsed<Expr> {
        let line = self.line();
        let mut left = if least <= level::NOT && self.is_name("not") {
            self.skip();
            let inner = self.nested(|parser| parser.operations(level::NOT))?;
            let below = inner.depth;
            self.expr(Node::Not(Box::new(inner)), line, below)?
        } else {
            self.unary(true)?
        };
        while let Some((level, binary)) = self.operator().filter(|(level, _)| *level >= least) {
            let line = self.line();
            left = match (level, binary) {
                (level::COMPARE, _) => self.comparison(left, line)?,
                (level::CONCAT, _) => {
                    let mut parts = vec![left];
                    while self.accept_op("~") {
                        parts.push(self.operations(level::PRODUCT)?);
                    }
                    let below = deepest(&parts);
                    self.expr(Node::Concat(parts), line, below)?
                }
                (_, binary) => {
                    self.skip();
                    let right = self.operations(level + 1)?;
                    let below = deepest([&left, &right]);
                    let pair = Box::new((left, right));
                    let node = match binary {
                        Some(binary) => Node::Binary(binary, pair),
                        None if level == level::OR => Node::Or(pair),
                        None => Node::And(pair),
                    };
                    self.expr(node, line, below)?
                }
            };
        }
        Ok(left)
    }

    fn comparison(&mut self, first: Expr, line: u32) -> Parsed<Expr> {
        let mut rest = Vec::new();
        while let Some((level::COMPARE, _)) = self.operator() {
            let comparison = match self.current() {
                Token::Op("==") => Comparison::Eq,
                Token::Op("!=") => Comparison::Ne,
                Token::Op("<") => Comparison::Lt,
                Token::Op("<=") => Comparison::Le,
                Token::Op(">") => Comparison::Gt,
                Token::Op(">=") => Comparison::Ge,
                Token::Name(name) if name == "not" => {
                    self.skip();
                    Comparison::NotIn
                }
                _ => Comparison::In,
            };
            self.skip();
            rest.push((comparison, self.operations(level::SUM)?));
        }
        let below = deepest(rest.iter().map(|(_, operand)| operand).chain([&first]));
        self.expr(Node::Compare(Box::new(first), rest), line, below)
    }

    fn unary(&mut self, filters: bool) -> Parsed<Expr> {
        let line = self.line();
        let negative = self.is_op("-");
        let mut expr = if negative || self.is_op("+") {
            self.skip();
            let inner = self.nested(|parser| parser.unary(false))?;
            let below = inner.depth;
            let inner = Box::new(inner);
            self.expr(if negative { Node::Negative(inner) } else { Node::Positive(inner) }, line, below)?
        } else {
            self.primary()?
        };
        expr = self.postfix(expr)?;
        if !filters {
            return Ok(expr);
        }
        loop {
            let line = self.line();
            expr = if self.is_op("|") {
                match self.filter_chain(Some(expr), false)? {
                    Some(expr) => expr,
                    None => return self.unexpected("name"),
                }
            } else if self.accept_name("is") {
                self.test(expr, line)?
            } else if self.is_op("(") {
                self.call(expr)?
            } else {
                return Ok(expr);
            };
        }
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let line = self.line();
        let node = match self.current().clone() {
            Token::Name(name) => {
                self.skip();
                match name.as_str() {
                    "true" | "True" => Node::Bool(true),
                    "false" | "False" => Node::Bool(false),
                    "none" | "None" => Node::None,
                    _ => {
                        self.load(&name);
                        Node::Name(self.symbol(name))
                    }
                }
            }
            Token::Str(mut text) => {
                self.skip();
                while let Token::Str(more) = self.current() {
                    text.push_str(more);
                    self.skip();
                }
                Node::Str(self.symbol(text))
            }
            Token::Int(value) => {
                self.skip();
                Node::Int(value)
            }
            Token::Float(value) => {
                self.skip();
                Node::Float(value)
            }
            Token::Op("(") => {
                self.skip();
                let inner = self.nested(|parser| parser.tuple(true, true))?;
                self.expect_op(")")?;
                return Ok(inner);
            }
            Token::Op("[") => {
                self.skip();
                let mut items = Vec::new();
                while !self.is_op("]") {
                    items.push(self.expression(true)?);
                    if !self.is_op("]") {
                        self.expect_op(",")?;
                    }
                }
                self.skip();
                let below = deepest(&items);
                return self.expr(Node::List(items), line, below);
            }
            Token::Op("{") => {
                self.skip();
                let mut entries = Vec::new();
                while !self.is_op("}") {
                    let key = self.expression(true)?;
                    self.expect_op(":")?;
                    entries.push((key, self.expression(true)?));
                    if !self.is_op("}") {
                        self.expect_op(",")?;
                    }
                }
                self.skip();
                let below = deepest(entries.iter().flat_map(|(key, value)| [key, value]));
                return self.expr(Node::Dict(entries), line, below);
            }
            other => return self.error(format!("unexpected '{}'", other.describe())),
        };
        self.expr(node, line, 0)
    }

    /// Expressions with commas between them are a tuple.
    pub(crate) fn tuple(&mut self, conditional: bool, parentheses: bool) -> Parsed<Expr> {
        let line = self.line();
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            let at_end = matches!(self.current(), Token::VariableEnd | Token::BlockEnd) || self.is_op(")");
            if at_end {
                break;
            }
            items.push(self.expression(conditional)?);
            if !self.accept_op(",") {
                break;
            }
            is_tuple = true;
        }
        if !is_tuple {
            if let Some(item) = items.pop() {
                return Ok(item);
            }
            if !parentheses {
                return self.error(format!("Expected an expression, got '{}'", self.current().describe()));
            }
        }
        let below = deepest(&items);
        self.expr(Node::Tuple(items), line, below)
    }

    fn postfix(&mut self, mut expr: Expr) -> Parsed<Expr> {
        loop {
            expr = if self.is_op(".") || self.is_op("[") {
                self.subscript(expr)?
            } else if self.is_op("(") {
                self.call(expr)?
            } else {
                return Ok(expr);
            };
        }
    }

    fn subscript(&mut self, expr: Expr) -> Parsed<Expr> {
        let line = self.line();
        if self.accept_op(".") {
            let below = expr.depth;
            let node = match self.current().clone() {
                Token::Name(name) => Node::Attribute(Box::new(expr), self.symbol(name)),
                Token::Int(index) => {
                    let index = self.expr(Node::Int(index), line, 0)?;
                    Node::Item(Box::new((expr, index)))
                }
                _ => return self.error("expected name or number"),
            };
            self.skip();
            return self.expr(node, line, below);
        }
        self.skip();
        let mut plain = Vec::new();
        let mut slices = Vec::new();
        while !self.is_op("]") {
            if plain.len() + slices.len() > 0 {
                self.expect_op(",")?;
            }
            match self.subscribed()? {
                Ok(index) => plain.push(index),
                Err(slice) => slices.push(slice),
            }
        }
        self.skip();
        if slices.len() == 1 && plain.is_empty() {
            let slice = slices.remove(0);
            let below = deepest(slice.iter().flatten().chain([&expr]));
            return self.expr(Node::Slice(Box::new(expr), Box::new(slice)), line, below);
        }
        if !slices.is_empty() {
            return self.expr(Node::BadSlice, line, 0);
        }
        let index = match plain.len() {
            1 => plain.remove(0),
            _ => {
                let below = deepest(&plain);
                self.expr(Node::Tuple(plain), line, below)?
            }
        };
        let below = deepest([&expr, &index]);
        self.expr(Node::Item(Box::new((expr, index))), line, below)
    }

    /// What stands in brackets: an index, or `Err` with the parts of a slice.
    fn subscribed(&mut self) -> Parsed<Result<Expr, [Option<Expr>; 3]>> {
        let start = if self.is_op(":") {
            None
        } else {
            let expr = self.expression(true)?;
            if !self.is_op(":") {
                return Ok(Ok(expr));
            }
            Some(expr)
        };
        self.skip();
        let ends = |parser: &Self| parser.is_op("]") || parser.is_op(",");
        let stop = if self.is_op(":") || ends(self) { None } else { Some(self.expression(true)?) };
        let step = if self.accept_op(":") && !ends(self) { Some(self.expression(true)?) } else { None };
        Ok(Err([start, stop, step]))
    }

    fn call(&mut self, callee: Expr) -> Parsed<Expr> {
        let line = self.line();
        let args = self.args()?;
        let below = callee.depth.max(args.depth());
        self.expr(Node::Call(Box::new(callee), args), line, below)
    }

    fn args(&mut self) -> Parsed<Box<Args>> {
        self.expect_op("(")?;
        let mut args = Self::no_args();
        let mut first = true;
        while !self.is_op(")") {
            if !first {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            first = false;
            let keyword = match self.current() {
                Token::Name(name) if *self.ahead() == Token::Op("=") => Some(name.clone()),
                _ => None,
            };
            let valid = if self.accept_op("*") {
                let valid = args.star.is_none() && args.double_star.is_none();
                args.star = Some(self.expression(true)?);
                valid
            } else if self.accept_op("**") {
                let valid = args.double_star.is_none();
                args.double_star = Some(self.expression(true)?);
                valid
            } else if let Some(name) = keyword {
                self.skip();
                self.skip();
                let value = self.expression(true)?;
                let symbol = self.symbol(name.clone());
                if args.keywords.iter().any(|(other, _)| *other == symbol) {
                    return self.error(format!("keyword argument repeated: {name}"));
                }
                args.keywords.push((symbol, value));
                args.double_star.is_none()
            } else {
                let valid = args.star.is_none() && args.double_star.is_none() && args.keywords.is_empty();
                args.positional.push(self.expression(true)?);
                valid
            };
            if !valid {
                return self.error("invalid syntax for function call expression");
            }
        }
        self.skip();
        Ok(args)
    }

    fn dotted_name(&mut self) -> Parsed<String> {
        let mut name = self.name()?;
        while self.accept_op(".") {
            name.push('.');
            name.push_str(&self.name()?);
        }
        Ok(name)
    }

    /// `|filter` any number of times. With `inline`, the first one has no bar before it.
    pub(crate) fn filter_chain(&mut self, mut expr: Option<Expr>, mut inline: bool) -> Parsed<Option<Expr>> {
        while inline || self.is_op("|") {
            if !inline {
                self.skip();
            }
            inline = false;
            let line = self.line();
            let name = self.dotted_name()?;
            let args = if self.is_op("(") { self.args()? } else { Self::no_args() };
            if !is_filter(&name) {
                self.unknown.push((format!("No filter named '{name}'."), line));
            }
            let symbol = self.symbol(name);
            let below = expr.as_ref().map_or(0, |expr| expr.depth).max(args.depth());
            expr = Some(self.expr(Node::Filter(expr.map(Box::new), symbol, args), line, below)?);
        }
        Ok(expr)
    }

    fn test(&mut self, expr: Expr, line: u32) -> Parsed<Expr> {
        let negated = self.accept_name("not");
        let name = self.dotted_name()?;
        let has_argument = match self.current() {
            Token::Name(name) => !matches!(name.as_str(), "else" | "or" | "and"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) => true,
            Token::Op(op) => matches!(*op, "[" | "{"),
            _ => false,
        };
        let args = if self.is_op("(") {
            self.args()?
        } else if has_argument {
            if self.is_name("is") {
                return self.error("You cannot chain multiple tests with is");
            }
            let argument = self.nested(Self::primary)?;
            let mut args = Self::no_args();
            args.positional.push(self.postfix(argument)?);
            args
        } else {
            Self::no_args()
        };
        if !is_test(&name) {
            self.unknown.push((format!("No test named '{name}'."), line));
        }
        let symbol = self.symbol(name);
        let below = expr.depth.max(args.depth());
        let test = self.expr(Node::Test(Box::new(expr), symbol, args), line, below)?;
        if !negated {
            return Ok(test);
        }
        let below = test.depth;
        self.expr(Node::Not(Box::new(test)), line, below)
    }
}
